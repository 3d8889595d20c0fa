//! Kinds of devices, by what browsers and robots call themselves.

/// What an event was sent from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A computer.
    Desktop,
    /// A phone.
    Mobile,
    /// A tablet.
    Tablet,
    /// A robot, or a program that fetches pages.
    Bot,
    /// Something else: a television, a console, a server's own client.
    Other,
}

/// Parts of the names of robots, and of the programs and libraries that fetch pages.
const BOTS: [&str; 22] = [
    "bot",
    "crawl",
    "spider",
    "slurp",
    "facebookexternalhit",
    "bingpreview",
    "mediapartners-google",
    "google-inspectiontool",
    "lighthouse",
    "headlesschrome",
    "phantomjs",
    "pingdom",
    "uptime",
    "curl/",
    "wget/",
    "python-requests",
    "python-urllib",
    "go-http-client",
    "apache-httpclient",
    "scrapy",
    "archiver",
    "preview",
];
const TELEVISIONS: [&str; 10] =
    ["smart-tv", "smarttv", "googletv", "appletv", "hbbtv", "netcast", "web0s", "roku", "playstation", "xbox"];
const TABLETS: [&str; 6] = ["ipad", "tablet", "kindle", "silk/", "playbook", "sm-t"];
const PHONES: [&str; 10] = [
    "iphone",
    "ipod",
    "windows phone",
    "iemobile",
    "blackberry",
    "bb10",
    "opera mini",
    "opera mobi",
    "mobile",
    "kaios",
];
const COMPUTERS: [&str; 6] = ["windows nt", "macintosh", "x11;", "cros ", "linux x86_64", "electron/"];

impl Device {
    /// The kind of device behind a user agent.
    pub fn of(user_agent: &str) -> Self {
        // A maker of phones, not of robots.
        let name = user_agent.to_ascii_lowercase().replace("cubot", "");
        let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        // Android phones say "Mobile", tablets with Android do not.
        let android = name.contains("android");
        if has(&BOTS) {
            Self::Bot
        } else if has(&TELEVISIONS) {
            Self::Other
        } else if has(&TABLETS) || (android && !name.contains("mobile")) {
            Self::Tablet
        } else if android || has(&PHONES) {
            Self::Mobile
        } else if has(&COMPUTERS) {
            Self::Desktop
        } else {
            Self::Other
        }
    }

    /// The name in sessions and processed events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Desktop => "desktop",
            Self::Mobile => "mobile",
            Self::Tablet => "tablet",
            Self::Bot => "bot",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_today_is_known() {
        let webkit = "AppleWebKit/537.36 (KHTML, like Gecko)";
        for (expected, user_agent) in [
            (Device::Desktop, format!("Mozilla/5.0 (Windows NT 10.0; Win64; x64) {webkit} Chrome/126.0.0.0 Safari/537.36")),
            (Device::Desktop, "Mozilla/5.0 (Macintosh; Intel Mac OS X 14.5; rv:127.0) Gecko/20100101 Firefox/127.0".into()),
            (Device::Desktop, format!("Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {webkit} Chrome/126.0 Safari/537.36")),
            (Device::Mobile, "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Version/17.5 Mobile/15E148".into()),
            (Device::Mobile, format!("Mozilla/5.0 (Linux; Android 14; Pixel 8) {webkit} Chrome/126.0 Mobile Safari/537.36")),
            (Device::Mobile, format!("Mozilla/5.0 (Linux; Android 10; CUBOT X30) {webkit} Chrome/126.0 Mobile Safari/537.36")),
            (Device::Tablet, format!("Mozilla/5.0 (Linux; Android 14; SM-X710) {webkit} Chrome/126.0 Safari/537.36")),
            (Device::Tablet, "Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Version/17.5 Mobile/15E148".into()),
            (Device::Bot, format!("Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X) {webkit} Chrome/126.0 Mobile Safari/537.36 (compatible; Googlebot/2.1)")),
            (Device::Bot, "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)".into()),
            (Device::Bot, "Twitterbot".into()),
            (Device::Bot, "curl/8.5.0".into()),
            (Device::Other, format!("Mozilla/5.0 (SMART-TV; Linux; Tizen 7.0) {webkit} Safari/537.36")),
            (Device::Other, "our-own-backend/1.0".into()),
            (Device::Other, String::new()),
        ] {
            assert_eq!(Device::of(&user_agent), expected, "{user_agent}");
        }
    }
}
