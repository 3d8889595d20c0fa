//! What is asked of a metric's dimensions: to tell the values of some apart, and to take only some values of others.

use std::collections::BTreeSet;

use tidemill_common::problem::Problem;
use tidemill_stream::metric::{OTHER, SEPARATOR, apart, together};

use super::source::bad;

/// Values that one filter may name, and combinations of values that several may.
const MAX_FILTER: usize = 1_000;

/// What `groupBy` and `filter` say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Names of dimensions whose values are told apart, in this order.
    pub groups: Vec<&'a str>,
    /// Names of dimensions, and the values that count.
    pub filters: Vec<(&'a str, Vec<String>)>,
}

/// How the values of a combination are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Places of the names that are told apart, in the order asked for.
    shown: Vec<usize>,
    /// By place: the values that count; none: all.
    wanted: Vec<Option<BTreeSet<String>>>,
}

impl<'a> Wanted<'a> {
    /// Reads `groupBy=<name>[,<name>…]` and `filter=<name>:<values>[;<name>:<values>…]`.
    pub fn parse(group_by: Option<&'a str>, filter: Option<&'a str>) -> Result<Self, Problem> {
        let groups: Vec<&str> = group_by.map(|names| names.split(SEPARATOR).collect()).unwrap_or_default();
        let (mut filters, mut rest) = (Vec::new(), filter);
        while let Some(text) = rest {
            let (name, values, more) = parse_filter(text)?;
            filters.push((name, values));
            rest = more;
        }
        let wanted = Self { groups, filters };
        let twice = |names: &[&str]| (1..names.len()).any(|i| names[..i].contains(&names[i]));
        if twice(&wanted.groups) {
            return Err(bad("groupBy", "must name each dimension once"));
        }
        if twice(&wanted.filters.iter().map(|(name, _)| *name).collect::<Vec<_>>()) {
            return Err(bad("filter", "must name each dimension once, with all of its values: country:DE,FR"));
        }
        Ok(wanted)
    }

    /// All dimensions that it names, each once.
    pub fn names(&self) -> BTreeSet<&'a str> {
        self.groups.iter().copied().chain(self.filters.iter().map(|(name, _)| *name)).collect()
    }

    /// The values that count of a dimension, if not all do.
    pub fn values(&self, name: &str) -> Option<&Vec<String>> {
        self.filters.iter().find(|(other, _)| *other == name).map(|(_, values)| values)
    }
}

impl Parts {
    /// What is wanted of a combination of these names, all of which are wanted.
    pub fn of(names: &[String], wanted: &Wanted<'_>) -> Self {
        let place = |name: &&str| names.iter().position(|other| other == name);
        let values = |name: &String| wanted.values(name).map(|values| values.iter().cloned().collect());
        Self { shown: wanted.groups.iter().filter_map(place).collect(), wanted: names.iter().map(values).collect() }
    }

    /// Whether some values do not count.
    pub fn filters(&self) -> bool {
        self.wanted.iter().any(Option::is_some)
    }

    /// The group of a value: what is told apart of it, as one value again. None where it does not count.
    pub fn group(&self, value: &str) -> Option<String> {
        let values = apart(value).filter(|values| values.len() == self.wanted.len())?;
        let counts = |(wanted, value): (&Option<BTreeSet<String>>, &String)| {
            wanted.as_ref().is_none_or(|wanted| wanted.contains(value))
        };
        let shown: Vec<&String> = self.shown.iter().map(|place| &values[*place]).collect();
        self.wanted.iter().zip(&values).all(counts).then(|| together(&shown))
    }

    /// All values that a group may consist of.
    pub fn members(&self, group: &str) -> Vec<String> {
        let values = apart(group).unwrap_or_default();
        let of = |place: usize| match self.shown.iter().position(|shown| *shown == place) {
            Some(at) => values.get(at).cloned().into_iter().collect(),
            None => self.wanted[place].iter().flatten().cloned().collect::<Vec<String>>(),
        };
        product(&(0..self.wanted.len()).map(of).collect::<Vec<_>>())
    }

    /// All values that filters on every name let through.
    pub fn all(&self) -> Result<Vec<String>, Problem> {
        let values: Vec<Vec<String>> =
            self.wanted.iter().map(|wanted| wanted.iter().flatten().cloned().collect()).collect();
        if values.iter().map(Vec::len).product::<usize>() > MAX_FILTER {
            return Err(bad("filter", &format!("must let at most {MAX_FILTER} combinations of values through")));
        }
        Ok(product(&values))
    }

    /// A group's values, by name; none for events that have none.
    pub fn fields(&self, group: &str) -> Vec<Option<String>> {
        let values = apart(group).unwrap_or_else(|| vec![OTHER.to_owned(); self.shown.len()]);
        values.into_iter().map(|value| Some(value).filter(|value| !value.is_empty())).collect()
    }
}

/// One value of each, in every way.
fn product(values: &[Vec<String>]) -> Vec<String> {
    let mut rows = vec![Vec::<&str>::new()];
    for values in values {
        let mut longer = Vec::with_capacity(rows.len() * values.len());
        for row in &rows {
            longer.extend(values.iter().map(|value| [row.as_slice(), &[value.as_str()]].concat()));
        }
        rows = longer;
    }
    rows.iter().map(|row| together(row)).collect()
}

/// `<name>:<value>[,<value>…]`, or the values as a JSON array of texts; and what follows behind a `;`.
fn parse_filter(text: &str) -> Result<(&str, Vec<String>, Option<&str>), Problem> {
    let form = "must be <dimension>:<value>, several values with ',' between them or as a JSON array of texts, several \
                dimensions with ';' between them";
    let wrong = || bad("filter", form);
    let (name, rest) = text.split_once(':').ok_or_else(wrong)?;
    let (values, rest) = if rest.starts_with('[') {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Vec<String>>();
        let found = values.next().and_then(Result::ok).ok_or_else(wrong)?;
        (found, &rest[values.byte_offset()..])
    } else {
        let end = rest.find(';').unwrap_or(rest.len());
        (rest[..end].split(',').map(str::to_owned).collect(), &rest[end..])
    };
    if values.is_empty() || values.len() > MAX_FILTER || values.iter().any(|value| value.contains('\0')) {
        return Err(bad("filter", &format!("must name 1 to {MAX_FILTER} values, without the character U+0000")));
    }
    match rest.strip_prefix(';') {
        Some(more) => Ok((name, values, Some(more))),
        None if rest.is_empty() => Ok((name, values, None)),
        None => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["country", "plan", "eventType"].map(str::to_owned).to_vec()
    }

    #[test]
    fn several_dimensions_are_filtered() {
        let parse = |filter: &'static str| Wanted::parse(None, Some(filter)).map(|wanted| wanted.filters);
        let some = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        assert_eq!(parse("a:1,2;b:3").expect("good"), [("a", some(&["1", "2"])), ("b", some(&["3"]))]);
        assert_eq!(parse(r#"a:["x;y","z,"];b:"#).expect("good"), [("a", some(&["x;y", "z,"])), ("b", some(&[""]))]);
        for wrong in ["a", "a:1;", "a:1;b", r#"a:["x"]y"#, "a:[1]", "a:[]", "a:1;a:2", "a:\0"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(Wanted::parse(Some("a,a"), None).is_err());
    }

    #[test]
    fn a_combination_is_grouped_by_a_part_of_it() {
        let wanted = Wanted::parse(Some("eventType,country"), Some("plan:a,b")).expect("good");
        let parts = Parts::of(&names(), &wanted);
        let group = |values: [&str; 3]| parts.group(&together(&values));
        assert_eq!(group(["DE", "a", "buy"]), Some(together(&["buy", "DE"])));
        assert_eq!(group(["DE", "c", "buy"]), None, "another plan");
        assert_eq!(parts.group(OTHER), None);
        let members = [together(&["DE", "a", "buy"]), together(&["DE", "b", "buy"])];
        assert_eq!(parts.members(&together(&["buy", "DE"])), members);
        assert_eq!(parts.fields(&together(&["buy", ""])), [Some("buy".to_owned()), None]);
        assert_eq!(parts.fields(OTHER), [Some(OTHER.to_owned()), Some(OTHER.to_owned())]);
    }

    #[test]
    fn filters_on_all_of_it_name_its_values() {
        let wanted = Wanted::parse(None, Some("country:DE,FR;plan:a;eventType:buy")).expect("good");
        let all = Parts::of(&names(), &wanted).all().expect("few");
        assert_eq!(all, [together(&["DE", "a", "buy"]), together(&["FR", "a", "buy"])]);
        let many = (0..100).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
        let filter = format!("country:{many};plan:{many};eventType:buy");
        let wanted = Wanted::parse(None, Some(&filter)).expect("good");
        assert!(Parts::of(&names(), &wanted).all().is_err());
    }
}
