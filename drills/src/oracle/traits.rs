//! What an event says beside its own fields. Traffic is made of a few user agents, addresses and origins, so that
//! tables will do.

use serde_json::Value;
use tidemill_common::event::Event;

/// User agents, and the devices behind them.
pub const AGENTS: [(&str, &str); 6] = [
    ("Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/126.0 Safari/537.36", "desktop"),
    ("Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148", "mobile"),
    ("Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/126.0 Mobile Safari/537.36", "mobile"),
    ("Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) AppleWebKit/605.1.15", "tablet"),
    ("Googlebot/2.1 (+http://www.google.com/bot.html)", "bot"),
    ("shop-backend/3.1", "other"),
];

/// A property and its value, and the traffic source that they name.
pub const ORIGINS: [(&str, &str, &str); 7] = [
    ("referrer", "https://www.google.com/search?q=lamp", "organic"),
    ("referrer", "https://t.co/abc", "social"),
    ("referrer", "https://blog.example/post", "referral"),
    ("utm_medium", "cpc", "paid"),
    ("utm_medium", "newsletter", "email"),
    ("utm_source", "flyer", "campaign"),
    ("url", "https://shop.example/?utm_medium=social", "social"),
];

/// Addresses; the file of countries that workers are given knows the IPv4 ones by their upper half.
pub const ADDRESSES: [&str; 4] = ["10.1.2.0", "127.0.0.0", "200.7.8.0", "2001:db8::"];
/// The countries of the lower and the upper half of the IPv4 addresses.
pub const COUNTRIES: (&str, &str) = ("NL", "JP");

/// The event's properties; nothing where it has none.
pub fn properties(event: &Event) -> Value {
    event.properties.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// The kind of device that it was sent from.
pub fn device(event: &Event) -> Option<&'static str> {
    let agent = event.user_agent.as_deref()?;
    Some(AGENTS.iter().find(|(name, _)| *name == agent).map_or("none of ours", |(_, device)| device))
}

/// Where its client is.
pub fn country(event: &Event) -> Option<&'static str> {
    let first: u8 = event.client_address.as_deref()?.split('.').next()?.parse().ok()?;
    Some(if first < 128 { COUNTRIES.0 } else { COUNTRIES.1 })
}

/// What brought its user here.
pub fn source(event: &Event) -> Option<&'static str> {
    let properties = properties(event);
    let names = |(name, value, _): &&(&str, &str, &str)| properties[*name] == *value;
    ORIGINS.iter().find(names).map(|(_, _, source)| *source)
}

/// Whether it is a conversion.
pub fn is_conversion(event: &Event) -> bool {
    ["purchase", "order_completed", "Order Completed", "conversion"].contains(&&*event.event_type)
}

/// What a conversion brought in, in cents.
pub fn revenue(event: &Event) -> Option<i64> {
    let properties = properties(event);
    let first = || ["revenue", "total", "value"].iter().find_map(|name| number(&properties[*name]));
    is_conversion(event).then(first).flatten()
}

/// The page that an event shows, and its name if it has one.
pub fn page(event: &Event) -> Option<Option<String>> {
    let properties = properties(event);
    let name = |key: &str| properties[key].as_str().map(str::to_owned);
    let viewed = ["page", "page_view", "pageview", "screen"].contains(&&*event.event_type);
    (name("page").is_some() || viewed).then(|| name("page").or(name("path")).or(name("url")))
}

/// An amount in JSON, in cents; it may stand in quotes.
pub fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => cents(&number.to_string()),
        Value::String(text) => cents(text),
        _ => None,
    }
}

/// An amount, in cents. Traffic has none with parts of a cent, so neither may any view.
pub fn cents(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction = fraction.trim_end_matches('0');
    (whole.ends_with(|c: char| c.is_ascii_digit()) && fraction.len() <= 2)
        .then(|| format!("{whole}{fraction:0<2}").parse().ok())
        .flatten()
}

/// Cents as views write them.
pub fn amount(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    let text = format!("{sign}{}.{:02}", cents.abs() / 100, cents.abs() % 100);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact() {
        let read = ["12", "12.5", "12.50", "0.07", "-3.1", "-0.5", "12.345", "x", ""].map(cents);
        let cents = [1_200, 1_250, 1_250, 7, -310, -50];
        assert_eq!(read, [cents.map(Some).as_slice(), &[None; 3]].concat()[..]);
        assert_eq!(cents.map(amount), ["12", "12.5", "12.5", "0.07", "-3.1", "-0.5"]);
    }
}
