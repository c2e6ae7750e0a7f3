//! The bar of work that is counted in bytes, with its rate and what is left of it in time: both
//! from the mean since it began.

use std::fmt::Write;
use std::time::Duration;

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressState, ProgressStyle};

/// For `n_bytes`, behind the words `what`. It shows nothing where standard error is no terminal.
///
/// # Panics
/// If there is a brace in `what`.
pub(crate) fn bar(what: &str, n_bytes: u64) -> ProgressBar {
    let look = format!("{what}{{bar:40}} {{bytes}} of {{total_bytes}}, {{rate}}, {{left}} left");
    let style = ProgressStyle::with_template(&look).expect("the template is valid");
    let style = style
        .with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
            let _ = out.write_str(&rate(state.pos(), state.elapsed()));
        })
        .with_key("left", |state: &ProgressState, out: &mut dyn Write| {
            let _ = out.write_str(&left(state.pos(), state.len(), state.elapsed()));
        });
    ProgressBar::new(n_bytes).with_style(style)
}

/// Bytes a second, as people read it.
fn rate(n_done: u64, elapsed: Duration) -> String {
    match elapsed.is_zero() {
        true => "?/s".to_owned(),
        false => format!("{}/s", HumanBytes((n_done as f64 / elapsed.as_secs_f64()) as u64)),
    }
}

/// How long the rest takes at the rate so far.
fn left(n_done: u64, n_in_all: Option<u64>, elapsed: Duration) -> String {
    let Some(n_in_all) = n_in_all.filter(|_| n_done > 0) else { return "?".to_owned() };
    let share = n_in_all.saturating_sub(n_done) as f64 / n_done as f64;
    // What is longer than any time is as long as any.
    let left = Duration::try_from_secs_f64(elapsed.as_secs_f64() * share);
    format!("{:#}", HumanDuration(left.unwrap_or(Duration::MAX)))
}

#[cfg(test)]
mod tests {
    use std::io::{self, IsTerminal};
    use std::sync::{Arc, Mutex};

    use indicatif::{ProgressDrawTarget, TermLike};

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn rate_and_time_left_follow_from_what_was_done_in_which_time() {
        let second = Duration::from_secs(1);
        assert_eq!(rate(0, Duration::ZERO), "?/s");
        assert_eq!(rate(0, second), "0 B/s");
        assert_eq!(rate(3 * MIB, 2 * second), "1.50 MiB/s");
        assert_eq!(rate(258 << 30, 120 * second), "2.15 GiB/s");
        assert_eq!(left(0, Some(MIB), second), "?");
        assert_eq!(left(MIB, None, second), "?");
        assert_eq!(left(MIB, Some(4 * MIB), 10 * second), "30s");
        assert_eq!(left(3 * MIB, Some(4 * MIB), 30 * second), "10s");
        assert_eq!(left(MIB, Some(25 * MIB), 600 * second), "4h");
        assert_eq!(left(4 * MIB, Some(4 * MIB), second), "0s");
        assert_eq!(left(5 * MIB, Some(4 * MIB), second), "0s", "more than was said");
        assert_ne!(left(1, Some(u64::MAX), Duration::MAX), "?", "no panic");
    }

    /// A terminal that keeps what was written to it.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            120
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, line: &str) -> io::Result<()> {
            self.write_str(&format!("{line}\n"))
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().expect("nobody panics with it").push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.0.lock().expect("nobody panics with it").clear();
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_terminal_shows_bytes_rate_and_time_left_and_nothing_else_does() {
        // So long that no pause of the test's own shows in the figures.
        let elapsed = Duration::from_secs(100_000);
        let screen = Screen::default();
        let bar = bar("loading ", 600_000 * MIB).with_elapsed(elapsed);
        assert_eq!(bar.is_hidden(), !io::stderr().is_terminal());
        bar.set_draw_target(ProgressDrawTarget::term_like(Box::new(screen.clone())));
        let shown = |n_done: u64| {
            bar.set_position(n_done);
            bar.force_draw();
            screen.0.lock().expect("nobody panicked with it").trim().to_owned()
        };
        let (full, empty) = ("█".repeat(10), "░".repeat(30));
        assert_eq!(
            shown(150_000 * MIB),
            format!("loading {full}{empty} 146.48 GiB of 585.94 GiB, 1.50 MiB/s, 3d left")
        );
        let end = shown(600_000 * MIB);
        assert!(end.ends_with("585.94 GiB of 585.94 GiB, 6.00 MiB/s, 0s left"), "{end}");
        bar.finish_and_clear();
        assert_eq!(*screen.0.lock().expect("nobody panicked with it"), "", "nothing stays");
    }
}
