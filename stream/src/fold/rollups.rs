//! Metric changes per window.

use std::sync::Arc;

use super::cells::Cells;
pub use super::cells::Change;
use super::guard::{Guard, Scope};
use super::sessions::{named_page, views_page};
use crate::decimal::Decimal;
use crate::metric::{self, Aggregation, Compiled, MAX_VALUES, Observation, Snapshot, Subject};
use crate::quick_map::QuickMap;
use crate::sketch::UserSketch;
use crate::window::Granularity;

/// What is counted together, whatever the window. Its order is that of its rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Series {
    /// The project.
    pub project: Arc<str>,
    /// The metric: [`metric::EVENTS`], another built-in one, or a declared one.
    pub metric: Arc<str>,
    /// The dimension; empty where all events of the metric count.
    pub dimension: Arc<str>,
    /// Its value; empty for events that have none.
    pub value: Box<str>,
    /// What the metric computes.
    pub aggregation: Aggregation,
}

/// One row of the rollups, but for its shard. Its order is the order in which rows are written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RollupKey {
    /// What is counted.
    pub series: Arc<Series>,
    /// How long the window is.
    pub granularity: Granularity,
    /// Its start, in seconds since 1970.
    pub window_start: i64,
}

/// All changes of a batch to one generation.
#[derive(Debug)]
pub struct Changes {
    generation: i32,
    definitions: Arc<Snapshot>,
    projects: Vec<Project>,
    cells: Cells,
}

/// A project in this batch. What an event's type means to it is found out once.
#[derive(Debug)]
struct Project {
    name: Arc<str>,
    /// The series of all events.
    events: u32,
    types: QuickMap<Box<str>, usize>,
    of_types: Vec<OfType>,
    /// Metrics that are not declared, and without dimensions.
    plain: QuickMap<&'static str, u32>,
    declared: Vec<Declared>,
}

#[derive(Debug)]
struct OfType {
    counts: Placed,
    is_page: bool,
    /// Places of the declared metrics that take this type.
    declared: Vec<usize>,
}

#[derive(Debug)]
struct Declared {
    metric: Arc<Compiled>,
    total: u32,
    dimensions: Vec<QuickMap<Box<str>, Placed>>,
}

/// Where a dimension's value counts, by day: under its own name or with the others.
#[derive(Debug, Clone, Copy)]
struct Placed {
    day: i64,
    series: u32,
}

/// When an event counts, and in whose books.
struct Moment<'a> {
    cells: &'a mut Cells,
    guard: &'a mut Guard,
    generation: i32,
    project: &'a Arc<str>,
    day: i64,
    minute: i64,
}

impl RollupKey {
    /// Whether the series has copies in Redis while its windows are hot. Those of dimensions stay in Postgres, but for
    /// the event types'; and one of these with another metric's name, so that it cannot overwrite that one's.
    pub fn has_copy(&self, definitions: &Snapshot) -> bool {
        let Series { project, metric, dimension, value, .. } = &*self.series;
        let of_type = **metric == *metric::EVENTS && **dimension == *metric::EVENT_TYPE;
        dimension.is_empty()
            || (of_type && !metric::is_reserved(value) && definitions.project(project).get(value).is_none())
    }

    /// What a reader asks for: the event type's name, or the metric's.
    pub fn shown_name(&self) -> &str {
        if self.series.dimension.is_empty() { &self.series.metric } else { &self.series.value }
    }
}

impl Changes {
    /// No changes yet; metrics are those declared now.
    pub fn new(generation: i32, definitions: Arc<Snapshot>) -> Self {
        Self { generation, definitions, projects: Vec::new(), cells: Cells::default() }
    }

    /// Counts an event: for its type, thereby for all types, and for every declared metric that takes it.
    pub fn count_event(&mut self, project: &str, subject: Subject<'_>, guard: &mut Guard) {
        let place = self.project(project);
        let Project { name, events, types, of_types, plain, declared } = &mut self.projects[place];
        let event = subject.event;
        let mut at = Moment {
            cells: &mut self.cells,
            guard,
            generation: self.generation,
            project: name,
            day: Granularity::Day.window(event.timestamp),
            minute: Granularity::Minute.window(event.timestamp),
        };
        let of_type = types.get(event.event_type).copied().unwrap_or_else(|| {
            types.insert(event.event_type.into(), of_types.len());
            of_types.push(OfType::new(event.event_type, declared));
            of_types.len() - 1
        });
        let of_type = &mut of_types[of_type];
        if of_type.counts.day != at.day {
            let series = Series::new(name, &metric::EVENTS.into(), metric::EVENT_TYPE, event.event_type);
            of_type.counts = at.place(series, MAX_VALUES, |_| true, Some(*events));
        }
        let change = at.change(of_type.counts.series);
        change.count += 1;
        change.unique.extend(event.user_id.map(UserSketch::coupon));
        if of_type.is_page || named_page(&subject.properties).is_some() {
            let series = plain_series(at.cells, plain, name, metric::PAGE_VIEWS);
            at.change(series).count += 1;
        }
        for &declared_at in &of_type.declared {
            declared[declared_at].count(subject, &mut at);
        }
    }

    /// Adds a signed difference to a metric that is not declared, in the windows around a time in microseconds:
    /// what the fold of sessions finds.
    pub fn add(&mut self, project: &str, metric: &'static str, at: i64, count: i64, sum: Decimal) {
        let place = self.project(project);
        let Project { name, plain, .. } = &mut self.projects[place];
        let series = plain_series(&mut self.cells, plain, name, metric);
        let change = self.cells.at(series, Granularity::Minute.window(at));
        change.count += count;
        if sum != Decimal::ZERO {
            *change.sum.get_or_insert_default() += sum;
        }
    }

    /// What remains of it all, by row, in their order.
    pub fn settle(self) -> Vec<(RollupKey, Change)> {
        self.cells.roll_up()
    }

    /// The place of a project, which is the same as the last event's for most events.
    fn project(&mut self, name: &str) -> usize {
        if let Some(place) = self.projects.iter().rposition(|project| *project.name == *name) {
            return place;
        }
        let (name, cells): (Arc<str>, _) = (name.into(), &mut self.cells);
        let events = cells.intern(Series::new(&name, &metric::EVENTS.into(), "", ""), |_| true, None);
        let declared = |metric: &Arc<Compiled>| {
            let series = Series { aggregation: metric.aggregation(), ..Series::new(&name, &metric.name, "", "") };
            let total = cells.intern(series, |granularity| metric.keeps(granularity), None);
            let dimensions = metric.dimensions.iter().map(|_| QuickMap::default()).collect();
            Declared { metric: Arc::clone(metric), total, dimensions }
        };
        let declared = self.definitions.project(&name).all().map(declared).collect();
        let (types, of_types, plain) = Default::default();
        self.projects.push(Project { name, events, types, of_types, plain, declared });
        self.projects.len() - 1
    }
}

impl Declared {
    fn count(&mut self, subject: Subject<'_>, at: &mut Moment<'_>) {
        let metric = &self.metric;
        let Some(seen) = metric.observe(subject) else { return };
        at.change(self.total).observe(&seen, metric.aggregation());
        for (dimension, values) in self.dimensions.iter_mut().enumerate() {
            let value = metric.label(dimension, subject);
            let known = values.get(&*value).filter(|placed| placed.day == at.day);
            let placed = known.copied().unwrap_or_else(|| {
                let series = Series {
                    aggregation: metric.aggregation(),
                    ..Series::new(at.project, &metric.name, &metric.dimensions[dimension], &value)
                };
                let keeps = |granularity| metric.keeps(granularity);
                let placed = at.place(series, metric.declaration.max_values, keeps, None);
                values.insert(value.into(), placed);
                placed
            });
            at.change(placed.series).observe(&seen, metric.aggregation());
        }
    }
}

impl Moment<'_> {
    /// The change of a series at this time.
    fn change(&mut self, series: u32) -> &mut Change {
        self.cells.at(series, self.minute)
    }

    /// Where a dimension's value counts on this day, when `most` of them are told apart.
    fn place(
        &mut self,
        mut series: Series,
        most: usize,
        keeps: impl Fn(Granularity) -> bool,
        total: Option<u32>,
    ) -> Placed {
        let scope = Scope {
            generation: self.generation,
            project: series.project.to_string(),
            metric: series.metric.to_string(),
            dimension: series.dimension.to_string(),
            day: self.day,
        };
        if !self.guard.admits(scope, &series.value, most) {
            series.value = metric::OTHER.into();
        }
        Placed { day: self.day, series: self.cells.intern(series, keeps, total) }
    }
}

impl Change {
    fn observe(&mut self, seen: &Observation<'_>, aggregation: Aggregation) {
        self.count += 1;
        match seen {
            Observation::Event => {}
            Observation::Text(text) => self.unique.push(UserSketch::coupon(text)),
            Observation::Number(number) => match aggregation {
                Aggregation::Sum | Aggregation::Avg => *self.sum.get_or_insert_default() += *number,
                Aggregation::Min => self.min = Some(self.min.map_or(*number, |min| min.min(*number))),
                Aggregation::Max => self.max = Some(self.max.map_or(*number, |max| max.max(*number))),
                _ => {
                    self.min = Some(self.min.map_or(*number, |min| min.min(*number)));
                    self.max = Some(self.max.map_or(*number, |max| max.max(*number)));
                    self.quantiles.add(*number);
                }
            },
        }
    }
}

impl OfType {
    fn new(event_type: &str, declared: &[Declared]) -> Self {
        let takes = |(place, declared): (usize, &Declared)| declared.metric.takes(event_type).then_some(place);
        Self {
            counts: Placed { day: i64::MIN, series: 0 },
            is_page: views_page(event_type),
            declared: declared.iter().enumerate().filter_map(takes).collect(),
        }
    }
}

impl Series {
    fn new(project: &Arc<str>, metric: &Arc<str>, dimension: &str, value: &str) -> Self {
        Self {
            project: Arc::clone(project),
            metric: Arc::clone(metric),
            dimension: dimension.into(),
            value: value.into(),
            aggregation: Aggregation::Count,
        }
    }
}

fn plain_series(
    cells: &mut Cells,
    plain: &mut QuickMap<&'static str, u32>,
    project: &Arc<str>,
    name: &'static str,
) -> u32 {
    let aggregation = if name == metric::REVENUE { Aggregation::Sum } else { Aggregation::Count };
    *plain.entry(name).or_insert_with(|| {
        cells.intern(Series { aggregation, ..Series::new(project, &name.into(), "", "") }, |_| true, None)
    })
}

#[cfg(test)]
mod tests;
