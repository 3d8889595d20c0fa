//! Where a visit comes from: campaign parameters first, then the page that linked here.

use std::borrow::Cow;

use crate::properties::Properties;

/// What brought somebody here. Who came by themselves has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A search engine's result.
    Organic,
    /// A social network.
    Social,
    /// A link on some other site.
    Referral,
    /// A mail.
    Email,
    /// An advertisement that is paid by click or view.
    Paid,
    /// A campaign of any other kind.
    Campaign,
}

/// The name of a visit without a source.
pub const DIRECT: &str = "direct";

/// Hosts, without `www.` or `m.` before them; `google.` stands for all that begin so.
const SEARCH: [&str; 18] = [
    "google.",
    "bing.com",
    "cn.bing.com",
    "duckduckgo.com",
    "search.yahoo.",
    "yahoo.",
    "yandex.",
    "ya.ru",
    "baidu.com",
    "ecosia.org",
    "qwant.com",
    "startpage.com",
    "search.brave.com",
    "search.naver.com",
    "seznam.cz",
    "search.seznam.cz",
    "sogou.com",
    "com.google.android.googlequicksearchbox",
];
const SOCIAL: [&str; 30] = [
    "facebook.com",
    "l.facebook.com",
    "lm.facebook.com",
    "fb.com",
    "fb.me",
    "instagram.com",
    "l.instagram.com",
    "threads.net",
    "twitter.com",
    "x.com",
    "t.co",
    "linkedin.com",
    "lnkd.in",
    "pinterest.",
    "reddit.com",
    "old.reddit.com",
    "out.reddit.com",
    "youtube.com",
    "youtu.be",
    "tiktok.com",
    "vk.com",
    "weibo.com",
    "wa.me",
    "web.whatsapp.com",
    "t.me",
    "web.telegram.org",
    "bsky.app",
    "mastodon.social",
    "tumblr.com",
    "news.ycombinator.com",
];
const MAIL: [&str; 7] = [
    "mail.",
    "webmail.",
    "outlook.live.com",
    "outlook.office.com",
    "outlook.office365.com",
    "com.google.android.gm",
    "deref-mail.com",
];

impl Source {
    /// The source that an event's properties name: `utm_medium`, `utm_source` and `utm_campaign`, there or in the `url`'s
    /// query; else the host of `referrer`, unless that is the `url`'s own.
    /// `of_host` is [`Self::of_host`], perhaps from memory.
    pub fn of(properties: &Properties<'_, '_>, of_host: impl FnOnce(&str) -> Self) -> Option<Self> {
        let text = |name: &str| properties.get(name)?.text().filter(|text| !text.is_empty());
        let url = text("url");
        let in_query = url.as_deref().filter(|url| url.contains("utm_"));
        let utm = |name: &str| text(name).or_else(|| parameter(in_query?, name).map(Cow::Borrowed));
        if let Some(medium) = utm("utm_medium") {
            return Some(Self::of_medium(&medium));
        }
        if utm("utm_source").is_some() || utm("utm_campaign").is_some() {
            return Some(Self::Campaign);
        }
        let referrer = text("referrer").or_else(|| text("referer"))?;
        let host = host(&referrer)?;
        let own = url.as_deref().and_then(self::host);
        (own != Some(host)).then(|| of_host(host))
    }

    fn of_medium(medium: &str) -> Self {
        let medium = medium.trim().to_ascii_lowercase();
        match medium.as_str() {
            "email" | "e-mail" | "mail" | "newsletter" => Self::Email,
            "organic" => Self::Organic,
            "social" | "social-network" | "social-media" | "social_network" | "social_media" | "sm" => Self::Social,
            "referral" => Self::Referral,
            "cpc" | "ppc" | "cpm" | "cpv" | "cpa" | "display" | "banner" | "retargeting" | "ads" => Self::Paid,
            medium if medium.starts_with("paid") => Self::Paid,
            _ => Self::Campaign,
        }
    }

    /// What a link on this host is.
    pub fn of_host(host: &str) -> Self {
        let host = host.to_ascii_lowercase();
        let host = host.strip_prefix("www.").or_else(|| host.strip_prefix("m.")).unwrap_or(&host);
        let is = |hosts: &[&str]| {
            hosts.iter().any(|name| if name.ends_with('.') { host.starts_with(name) } else { host == *name })
        };
        if is(&MAIL) {
            Self::Email
        } else if is(&SEARCH) {
            Self::Organic
        } else if is(&SOCIAL) {
            Self::Social
        } else {
            Self::Referral
        }
    }

    /// The name in sessions and processed events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Organic => "organic",
            Self::Social => "social",
            Self::Referral => "referral",
            Self::Email => "email",
            Self::Paid => "paid",
            Self::Campaign => "campaign",
        }
    }
}

/// The host in a URL, or in one whose scheme was left out.
fn host(url: &str) -> Option<&str> {
    // Asked for every event, so by single characters: a text is looked for three times as long.
    let rest = url.split_once(':').and_then(|(_, rest)| rest.strip_prefix("//")).unwrap_or(url);
    let end = rest.bytes().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let authority = &rest[..end];
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    let named =
        host.contains('.') && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-' || b >= 0x80);
    named.then_some(host)
}

/// A parameter of a URL's query, as it is written; an empty one is none.
fn parameter<'a>(url: &'a str, name: &str) -> Option<&'a str> {
    let query = url.split_once('?')?.1.split('#').next()?;
    let value = |pair: &'a str| pair.strip_prefix(name)?.strip_prefix('=');
    query.split('&').find_map(value).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::properties::Fields;

    fn source(json: &str) -> &'static str {
        Source::of(&Fields::read(json).of(json), Source::of_host).map_or(DIRECT, Source::as_str)
    }

    #[test]
    fn campaigns_come_before_referrers() {
        for (expected, json) in [
            ("email", r#"{"utm_medium":"Email","referrer":"https://www.google.com/"}"#),
            ("paid", r#"{"utm_source":"google","utm_medium":"cpc"}"#),
            ("paid", r#"{"utm_medium":"paid_social"}"#),
            ("social", r#"{"utm_medium":"social"}"#),
            ("campaign", r#"{"utm_source":"flyer"}"#),
            ("campaign", r#"{"utm_medium":"qr"}"#),
            ("email", r#"{"url":"https://shop.example/?a=1&utm_medium=newsletter#utm_medium=cpc"}"#),
            (
                "organic",
                r#"{"url":"https://shop.example/utm_medium=cpc?utm_medium=","referrer":"https://google.co.uk"}"#,
            ),
        ] {
            assert_eq!(source(json), expected, "{json}");
        }
    }

    #[test]
    fn referrers_are_known_by_their_hosts() {
        for (expected, referrer) in [
            ("organic", "https://www.google.com/search?q=x"),
            ("organic", "https://duckduckgo.com"),
            ("organic", "android-app://com.google.android.googlequicksearchbox/"),
            ("email", "https://mail.google.com/mail/u/0"),
            ("referral", "https://docs.google.com/document/1"),
            ("referral", "https://notgoogle.com/"),
            ("social", "https://t.co/abc"),
            ("social", "http://M.Facebook.com:80/x"),
            ("referral", "https://user:pw@blog.example/post"),
            ("referral", "blog.example/post"),
            ("direct", "https://shop.example/cart"),
            ("direct", ""),
            ("direct", "none"),
            ("direct", "about:blank"),
        ] {
            let json = serde_json::json!({"url": "https://shop.example/", "referrer": referrer}).to_string();
            assert_eq!(source(&json), expected, "{referrer}");
        }
        for json in ["{}", "", r#"{"referrer":5}"#, r#"{"referrer":null,"utm_medium":""}"#] {
            assert_eq!(source(json), "direct", "{json}");
        }
    }
}
