//! How far a measurement is, as a line on standard error that is written over.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use crate::bench::Stage;
use crate::bench::exchange::Progress;

/// How often the line is written.
const TICK: Duration = Duration::from_millis(200);

/// The line. Where standard error is no terminal, it does not appear.
pub(super) struct Screen {
    bar: Mutex<ProgressBar>,
    is_quiet: bool,
}

impl Screen {
    pub(super) fn new(is_quiet: bool) -> Screen {
        Screen { bar: Mutex::new(ProgressBar::hidden()), is_quiet }
    }

    /// Takes note of what happens now.
    pub(super) fn show(&self, stage: Stage) {
        if self.is_quiet {
            return;
        }
        match stage {
            Stage::Preparing => self.begin("looks at the server".to_owned(), None, None),
            Stage::WarmingUp { n_requests, progress } => {
                self.begin("warms up".to_owned(), Some(n_requests), Some(progress));
            }
            Stage::Measuring { title, n_requests, progress } => {
                self.begin(title, n_requests, Some(progress));
            }
            Stage::Checking { n_answers } => {
                self.begin(format!("asks for {n_answers} answers again"), None, None);
            }
            Stage::Over => self.clear(),
        }
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        self.bar.lock().finish_and_clear();
    }

    fn begin(&self, title: String, n_requests: Option<usize>, progress: Option<Arc<Progress>>) {
        let bar = match n_requests {
            Some(n) => ProgressBar::new(n as u64),
            None => ProgressBar::new_spinner(),
        };
        let template = match (n_requests, &progress) {
            (Some(_), Some(_)) => "{prefix} [{bar:30}] {live}",
            (None, Some(_)) => "{prefix} {spinner} {live}",
            _ => "{prefix} {spinner}",
        };
        let began = Instant::now();
        let style = ProgressStyle::with_template(template).expect("a template of ours");
        let style = style.with_key("live", move |_: &_, out: &mut dyn std::fmt::Write| {
            if let Some(progress) = &progress {
                let _ = out.write_str(&live(progress, began.elapsed()));
            }
        });
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(title);
        bar.enable_steady_tick(TICK);
        let before = std::mem::replace(&mut *self.bar.lock(), bar);
        before.finish_and_clear();
    }
}

fn live(progress: &Progress, elapsed: Duration) -> String {
    let of = |count: &std::sync::atomic::AtomicUsize| count.load(Ordering::Relaxed);
    let (n_begun, n_over, n_failed) =
        (of(&progress.n_begun), of(&progress.n_over), of(&progress.n_failed));
    let n_pieces = progress.n_pieces.load(Ordering::Relaxed) as f64;
    let s = elapsed.as_secs_f64().max(0.001);
    format!(
        "{n_over} over, {} under way, {n_failed} failed, {:.1} tokens/s, {s:.0} s",
        n_begun.saturating_sub(n_over),
        n_pieces / s
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_it_is() {
        let progress = Progress::default();
        progress.n_begun.store(7, Ordering::Relaxed);
        progress.n_over.store(4, Ordering::Relaxed);
        progress.n_failed.store(1, Ordering::Relaxed);
        progress.n_pieces.store(50, Ordering::Relaxed);
        let line = live(&progress, Duration::from_secs(5));
        assert_eq!(line, "4 over, 3 under way, 1 failed, 10.0 tokens/s, 5 s");
    }
}
