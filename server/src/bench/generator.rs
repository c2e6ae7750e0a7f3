//! How the load generator itself fared: a tool that lags measures itself, and must say so.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::clock::Clock;
use super::figures::{Spread, SpreadBuilder};

/// How often the generator looks whether it is late.
const BEAT: Duration = Duration::from_millis(10);

/// Share of its threads' time beyond which a generator has no reserve.
const CPU_SHARE_MAX: f64 = 0.9;

/// Linux counts a process's time in hundredths of a second on every architecture.
const TICKS_PER_S: f64 = 100.0;

/// What the generator knows of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Generator {
    /// How late its timers woke it, in milliseconds, asked a hundred times a second.
    pub wake_lag_ms: Spread,
    /// Processor time of this process, as a share of its threads' time; nothing where the system
    /// does not tell.
    pub cpu_share: Option<f64>,
}

/// Looks on until told to end.
pub struct Watch {
    clock: Clock,
    began: Duration,
    cpu_before_s: Option<f64>,
    beats: std::sync::Arc<parking_lot::Mutex<SpreadBuilder>>,
    beating: JoinHandle<()>,
}

impl Watch {
    /// Begins, within a runtime.
    pub fn start(clock: &Clock) -> Watch {
        let beats = std::sync::Arc::new(parking_lot::Mutex::new(SpreadBuilder::default()));
        let beating = {
            let (clock, beats) = (clock.clone(), std::sync::Arc::clone(&beats));
            tokio::spawn(async move {
                loop {
                    let due = clock.now() + BEAT;
                    clock.sleep_until(due).await;
                    beats.lock().add(clock.now().saturating_sub(due));
                }
            })
        };
        let cpu_before_s = clock.is_real().then(cpu_s).flatten();
        let began = clock.now();
        Watch { clock: clock.clone(), began, cpu_before_s, beats, beating }
    }

    /// Ends.
    pub fn end(self) -> Generator {
        self.beating.abort();
        let n_threads = tokio::runtime::Handle::current().metrics().num_workers();
        let wall_s = self.clock.now().saturating_sub(self.began).as_secs_f64();
        let cpu_s = self.cpu_before_s.and_then(|before| Some(cpu_s()? - before));
        Generator {
            wake_lag_ms: self.beats.lock().finish(),
            cpu_share: cpu_s.filter(|_| wall_s > 0.0).map(|s| s / (wall_s * n_threads as f64)),
        }
    }
}

/// Why figures of a run are not to be relied on; none if they are. `send_lag_ms` is how late
/// requests were sent.
pub fn reasons_against(
    generator: &Generator,
    send_lag_ms: &Spread,
    lag_max: Duration,
) -> Vec<String> {
    let lag_max_ms = lag_max.as_secs_f64() * 1e3;
    let mut reasons = Vec::new();
    for (what, lag) in
        [("requests were sent", send_lag_ms), ("timers fired", &generator.wake_lag_ms)]
    {
        if lag.p99 > lag_max_ms {
            reasons.push(format!(
                "the generator lagged: 1 % of its {what} {:.1} ms late or more, {lag_max_ms:.1} ms \
                 are allowed (--lag-max-ms)",
                lag.p99
            ));
        }
    }
    if let Some(share) = generator.cpu_share.filter(|share| *share > CPU_SHARE_MAX) {
        reasons.push(format!(
            "the generator had no reserve: its threads were busy {:.0} % of the time (--threads)",
            share * 100.0
        ));
    }
    reasons
}

/// Seconds of processor time that this process has taken, as `proc(5)` has it.
fn cpu_s() -> Option<f64> {
    parse_cpu_s(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

/// The fourteenth and fifteenth fields; the second is a name that may hold blanks and brackets.
fn parse_cpu_s(stat: &str) -> Option<f64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field_idx: usize| fields.get(field_idx)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS_PER_S)
}

#[cfg(test)]
mod tests {
    use super::super::clock::in_virtual_time;
    use super::*;

    fn lag(ms: f64) -> Spread {
        let mut lags = SpreadBuilder::default();
        lags.add(Duration::from_secs_f64(ms / 1e3));
        lags.finish()
    }

    #[test]
    fn a_run_is_declared_invalid_for_each_reason_alone() {
        let judge = |send_ms, wake_ms, cpu_share| {
            let generator = Generator { wake_lag_ms: lag(wake_ms), cpu_share };
            reasons_against(&generator, &lag(send_ms), Duration::from_millis(10))
        };
        assert_eq!(judge(9.0, 9.0, Some(0.8)), [""; 0]);
        assert_eq!(judge(9.0, 9.0, None), [""; 0]);
        let cases = [
            (judge(12.0, 0.0, None), "requests were sent 12.0 ms late"),
            (judge(0.0, 12.0, None), "timers fired 12.0 ms late"),
            (judge(0.0, 0.0, Some(0.97)), "busy 97 % of the time"),
        ];
        for (reasons, expected) in cases {
            assert_eq!(reasons.len(), 1, "{reasons:?}");
            assert!(reasons[0].contains(expected), "{reasons:?}");
        }
    }

    #[test]
    fn a_generator_on_time_has_no_lag() {
        let generator = in_virtual_time(|clock| async move {
            let watch = Watch::start(&clock);
            clock.sleep_until(Duration::from_secs(1)).await;
            watch.end()
        });
        assert_eq!(generator.wake_lag_ms.n, 99);
        assert_eq!(generator.wake_lag_ms.max, 0.0);
    }

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat = "7 (a) b) R 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20";
        assert_eq!(parse_cpu_s(stat), Some(2.0));
        assert_eq!(parse_cpu_s("7 (a) R 1"), None);
        assert!(cpu_s().is_none_or(|s| s >= 0.0));
    }
}
