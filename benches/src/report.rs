//! What came out: medians, the table, JSON.

use serde_json::{Value, json};

/// What a row should come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Aim {
    /// Ours by the peer's, at least.
    AtLeast(f64),
    /// Ours by the peer's, at most.
    AtMost(f64),
    /// Ours, whatever the peer's is.
    Below(f64),
    None,
}

impl Aim {
    fn is_met_by(self, summary: &Summary) -> Option<bool> {
        match self {
            Self::AtLeast(least) => Some(summary.ratio >= least),
            Self::AtMost(most) => Some(summary.ratio <= most),
            Self::Below(limit) => Some(summary.ours < limit),
            Self::None => None,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!(">= {least}"),
            Self::AtMost(most) => format!("<= {most}"),
            Self::Below(limit) => format!("ours < {limit}"),
            Self::None => "-".to_owned(),
        }
    }
}

/// A value that a measurement gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    /// Told apart by this where a measurement gives several; may be empty.
    which: &'static str,
    unit: &'static str,
    decimals: usize,
    aim: Aim,
}

impl Metric {
    pub(crate) fn new(which: &'static str, unit: &'static str, decimals: usize, aim: Aim) -> Self {
        Self {
            which,
            unit,
            decimals,
            aim,
        }
    }
}

/// The values of one metric.
pub(crate) struct Row {
    name: String,
    metric: Metric,
    /// Ours and the peer's, of each round.
    pub(crate) rounds: Vec<(f64, f64)>,
}

/// What the rounds come to.
struct Summary {
    ours: f64,
    peer: f64,
    /// The median of the rounds' ratios, and the least and the greatest of them.
    ratio: f64,
    least: f64,
    greatest: f64,
}

impl Row {
    pub(crate) fn new(case: &str, metric: &Metric) -> Self {
        let name = match metric.which {
            "" => case.to_owned(),
            which => format!("{case}, {which}"),
        };
        Self {
            name,
            metric: *metric,
            rounds: Vec::new(),
        }
    }

    fn summary(&self) -> Summary {
        let ratios: Vec<f64> = self.rounds.iter().map(|(ours, peer)| ours / peer).collect();
        Summary {
            ours: median(self.rounds.iter().map(|(ours, _)| *ours).collect()),
            peer: median(self.rounds.iter().map(|(_, peer)| *peer).collect()),
            least: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            greatest: ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ratio: median(ratios),
        }
    }
}

/// The middle value; of an even number the mean of the two; NaN of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2);
    let lower = values.get(values.len().saturating_sub(1) / 2);
    match (lower, upper) {
        (Some(lower), Some(upper)) => f64::midpoint(*lower, *upper),
        _ => f64::NAN,
    }
}

/// Prints the table for people, as Markdown.
pub(crate) fn print_table(rows: &[Row]) {
    println!("| row | unit | ratite | peer | ratio | least..greatest | aim | met |");
    println!("|---|---|--:|--:|--:|--:|--:|---|");
    let mut counts = [0_usize; 2];
    for row in rows {
        let summary = row.summary();
        let Metric {
            unit,
            decimals,
            aim,
            ..
        } = row.metric;
        let is_met = aim.is_met_by(&summary);
        let met = match is_met {
            Some(true) => "yes",
            Some(false) => "no",
            None => "",
        };
        let Summary {
            ours,
            peer,
            ratio,
            least,
            greatest,
        } = summary;
        println!(
            "| {} | {unit} | {ours:.decimals$} | {peer:.decimals$} | {ratio:.2} | {least:.2}..{greatest:.2} | {} | {met} |",
            row.name,
            aim.text(),
        );
        if let Some(met) = is_met {
            let [all, reached] = &mut counts;
            *all += 1;
            *reached += usize::from(met);
        }
    }
    let [all, reached] = counts;
    println!("\n{reached} of {all} rows with an aim meet it.");
}

/// Everything, each round included.
pub(crate) fn to_json(rows: &[Row]) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            let summary = row.summary();
            let ours: Vec<f64> = row.rounds.iter().map(|(ours, _)| *ours).collect();
            let peer: Vec<f64> = row.rounds.iter().map(|(_, peer)| *peer).collect();
            json!({
                "row": row.name,
                "unit": row.metric.unit,
                "ratite": summary.ours,
                "peer": summary.peer,
                "ratio": summary.ratio,
                "ratio-least": summary.least,
                "ratio-greatest": summary.greatest,
                "aim": row.metric.aim.text(),
                "met": row.metric.aim.is_met_by(&summary),
                "ratite-rounds": ours,
                "peer-rounds": peer,
            })
        })
        .collect();
    Value::Array(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn a_ratio_is_taken_within_its_round() {
        let metric = Metric::new("", "per s", 0, Aim::AtLeast(1.2));
        let mut row = Row::new("row", &metric);
        // The machine was three times as fast in the second round.
        row.rounds = vec![(20.0, 10.0), (60.0, 30.0), (10.0, 10.0)];
        let summary = row.summary();
        assert_eq!((summary.ratio, summary.least), (2.0, 1.0));
        assert_eq!((summary.ours, summary.peer), (20.0, 10.0));
        assert_eq!(metric.aim.is_met_by(&summary), Some(true));
        assert_eq!(Aim::AtMost(0.5).is_met_by(&summary), Some(false));
        assert_eq!(Aim::Below(20.0).is_met_by(&summary), Some(false));
        assert_eq!(Aim::Below(20.1).is_met_by(&summary), Some(true));
    }
}
