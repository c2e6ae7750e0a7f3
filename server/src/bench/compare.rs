//! Two results side by side.

use super::report::Report;
use super::statistics::Interval;

/// A comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Why it may mislead.
    pub warnings: Vec<String>,
    /// Figure by figure.
    pub rows: Vec<Row>,
}

/// A figure in both.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Protocol, name, unit.
    pub name: String,
    /// In the older.
    pub before: Interval,
    /// In the newer.
    pub after: Interval,
    /// From the older to the newer, per cent.
    pub change_percent: f64,
    /// The same, but above zero where it is worse: less a second, or more time.
    pub worse_percent: f64,
    /// Whether the intervals do not meet; nothing where a result has one run only.
    pub is_certain: Option<bool>,
}

/// Compares the figures that both have.
pub fn compare(before: &Report, after: &Report) -> Comparison {
    let mut warnings = Vec::new();
    for (which, report) in [("the older", before), ("the newer", after)] {
        for reason in report.invalid() {
            warnings.push(format!("{which} is invalid: {reason}"));
        }
        let n_differences = report.n_differences();
        if n_differences > 0 {
            warnings.push(format!("{which} has {n_differences} answers that differ under load"));
        }
    }
    for (name, value) in &before.settings {
        let other = after.settings.iter().find(|(other, _)| other == name);
        let other = other.map_or("not said", |(_, value)| value);
        if other != value {
            warnings.push(format!("{name}: {value} before, {other} after"));
        }
    }
    if before.model != after.model {
        warnings.push(format!("model: {} before, {} after", before.model, after.model));
    }
    let mut rows = Vec::new();
    for one in &before.intervals {
        let Some(other) = after.intervals.iter().find(|other| other.endpoint == one.endpoint)
        else {
            warnings.push(format!("{} is in the older only", one.endpoint.name()));
            continue;
        };
        for (name, before) in &one.figures {
            let after = other.figures.iter().find(|(other, _)| other == name);
            let Some((_, after)) = after.filter(|_| before.mean > 0.0) else { continue };
            let change_percent = (after.mean / before.mean - 1.0) * 100.0;
            let is_rate = name.ends_with("/s");
            rows.push(Row {
                name: format!("{}, {name}", one.endpoint.name()),
                before: *before,
                after: *after,
                change_percent,
                worse_percent: if is_rate { -change_percent } else { change_percent },
                is_certain: before.differs_from(after),
            });
        }
    }
    Comparison { warnings, rows }
}

impl Comparison {
    /// What became worse by most, where that is more than chance or chance is not known.
    pub fn worst(&self) -> Option<&Row> {
        let real = self.rows.iter().filter(|row| row.is_certain != Some(false));
        real.max_by(|a, b| a.worse_percent.total_cmp(&b.worse_percent))
    }
}
