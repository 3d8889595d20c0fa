//! The live audit: a sample is compared, what is behind gets a second look, and what differs is projected again.

use std::time::Instant;

use chrono::Utc;

use super::compare::{self, Finding};
use super::pending::Key;
use super::task::Projection;
use super::writer::ProjectError;
use crate::timeline;

/// Most projects in one audit; the next one goes on behind them.
const AUDITED: usize = 20;

impl Projection {
    /// Compares a sample.
    pub(super) async fn audit(&mut self) -> Result<(), ProjectError> {
        let whole: Vec<String> = self
            .guard
            .projects()
            .into_iter()
            .filter(|p| self.guard.is_whole(p) && !self.queue.contains_key(p))
            .collect();
        let collecting = self.second_look_at.is_none(); // each suspect gets its whole time
        let behind = whole.iter().position(|project| *project > self.audited).unwrap_or(0);
        for project in whole.iter().cycle().skip(behind).take(AUDITED.min(whole.len())) {
            self.audited.clone_from(project);
            let now = Utc::now();
            let random = f64::from(now.timestamp_subsec_micros()) / 1e6;
            let mut sample = compare::sample(&self.writer, project, random, now).await?;
            let behind = self.audited_carts.entry(project.clone()).or_default();
            sample.extend(compare::some_carts(&self.writer, project, behind, now).await?);
            let findings = compare::compare(&self.writer, sample).await?;
            metrics::counter!("tidemill_stream_audit_compared_total").increment(findings.compared);
            for (key, finding) in findings.odd {
                match finding {
                    Finding::Behind(held) if collecting => drop(self.suspects.insert(key, held)),
                    Finding::Behind(_) => {}
                    finding => self.differs(&key, &finding).await?,
                }
            }
        }
        if collecting && !self.suspects.is_empty() {
            self.second_look_at = Some(Instant::now() + compare::GRACE);
        }
        Ok(())
    }

    /// What was behind and has not moved since is a difference.
    pub(super) async fn second_look(&mut self) -> Result<(), ProjectError> {
        let suspects = std::mem::take(&mut self.suspects);
        let findings = compare::compare(&self.writer, suspects.keys().cloned().collect()).await?;
        for (key, finding) in findings.odd {
            let moved = matches!(&finding, Finding::Behind(held) if suspects.get(&key) != Some(held));
            let known = self.queue.contains_key(key.project()) || !self.guard.is_whole(key.project());
            if suspects.contains_key(&key) && !moved && !known {
                self.differs(&key, &finding).await?;
            }
        }
        Ok(())
    }

    /// Says so, and mends it.
    async fn differs(&mut self, key: &Key, finding: &Finding) -> Result<(), ProjectError> {
        metrics::counter!("tidemill_stream_audit_differences_total").increment(1);
        tracing::error!(?key, ?finding, "redis differs from postgres; projecting it again");
        match (key, finding) {
            (_, Finding::Ahead(held, stored)) => {
                let reason = format!("redis shows {held:?} of {key:?}, and postgres {stored:?}");
                let raised = timeline::raise(&self.writer.pool, stored.epoch, held.epoch, &reason).await?;
                self.enter(raised);
            }
            // The set may be gone as a whole: nothing says how much of it is missing.
            (Key::User((project, _)), _) => self.forget([project.clone()]),
            _ => self.note_again(key.clone()),
        }
        Ok(())
    }
}
