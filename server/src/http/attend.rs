//! A connection's task: its connection, and what else may end it.
//!
//! A stream of tokens wakes its task at every token, when nothing of all else has happened. So what
//! else a task waits for is looked at only when that has said so ([`Aside`]): to ask it every time
//! would cost a token as much as its text does.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use hyper_util::server::graceful::GracefulConnection;
use tokio::sync::watch;

use super::seats::Held;
use super::state::App;
use crate::metrics::Cut;

/// Serves a connection to its end. Whatever ends it is the client's affair, but for what the server
/// does not wait for any longer, which is counted. Once `leaving` says so, it ends with the answer
/// that is under way; whoever sent that can wait until nobody listens any more.
pub(super) async fn attend(
    app: App,
    connection: impl GracefulConnection<Error = hyper::Error>,
    mut leaving: watch::Receiver<()>,
    seat: Held,
) {
    let _open = app.metrics.connection();
    let mut connection = pin!(connection);
    let is_told = AtomicBool::new(false);
    let beside = pin!(async {
        tokio::select! {
            () = seat.gives_way() => return,
            // It was said, or who would have said it is gone.
            _ = leaving.changed() => is_told.store(true, Ordering::Relaxed),
        }
        seat.gives_way().await;
    });
    let mut beside = Aside::new(beside);
    let ended = poll_fn(|cx| {
        if beside.poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        if is_told.swap(false, Ordering::Relaxed) {
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx).map(Some)
    });
    match ended.await {
        None => app.metrics.connection_cut(Cut::GaveWay),
        Some(Err(error)) => {
            tracing::debug!(%error, "connection");
            if error.is_timeout() {
                app.metrics.connection_cut(Cut::Silent);
            }
        }
        Some(Ok(())) => {}
    }
}

/// A future beside what a task is woken for again and again: polled at first, and then whenever it
/// was what woke the task.
struct Aside<'a, Waited> {
    waited: Pin<&'a mut Waited>,
    bell: Option<Arc<Bell>>,
}

/// Wakes the task, and remembers it.
struct Bell {
    rang: AtomicBool,
    task: Waker,
}

impl<'a, Waited: Future> Aside<'a, Waited> {
    fn new(waited: Pin<&'a mut Waited>) -> Aside<'a, Waited> {
        Aside { waited, bell: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Waited::Output> {
        let known = self.bell.take().filter(|bell| bell.task.will_wake(cx.waker()));
        let bell = known.unwrap_or_else(|| Bell::new(cx.waker()));
        // Silent before the poll: what rings during it is heard the next time.
        let rang = bell.rang.load(Ordering::Relaxed) && bell.rang.swap(false, Ordering::Acquire);
        let bell = self.bell.insert(bell);
        if !rang {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(bell));
        self.waited.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

impl Bell {
    /// It has rung: whoever hears it first has never looked.
    fn new(task: &Waker) -> Arc<Bell> {
        Arc::new(Bell { rang: AtomicBool::new(true), task: task.clone() })
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rang.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts how often it woke somebody.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ready at its `n_needed`th poll; keeps the waker of each.
    struct Asked {
        n_needed: usize,
        wakers: Vec<Waker>,
    }

    impl Future for Asked {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            self.wakers.push(cx.waker().clone());
            if self.wakers.len() >= self.n_needed { Poll::Ready(()) } else { Poll::Pending }
        }
    }

    #[test]
    fn what_lies_aside_is_asked_when_it_has_called_and_not_before() {
        let [first, second] = [0; 2].map(|_| Arc::new(Woken::default()));
        let [first_task, second_task] = [&first, &second].map(|task| Waker::from(Arc::clone(task)));
        let mut asked = pin!(Asked { n_needed: 4, wakers: Vec::new() });
        let n_asked = |aside: &Aside<'_, Asked>| aside.waited.wakers.len();
        let mut aside = Aside::new(asked.as_mut());
        let mut cx = Context::from_waker(&first_task);
        for _ in 0..3 {
            assert!(aside.poll(&mut cx).is_pending());
        }
        assert_eq!(n_asked(&aside), 1, "it has not called since the first time");
        aside.waited.wakers[0].wake_by_ref();
        assert_eq!(first.0.load(Ordering::Relaxed), 1, "its call wakes the task");
        assert!(aside.poll(&mut cx).is_pending() && aside.poll(&mut cx).is_pending());
        assert_eq!(n_asked(&aside), 2);
        // Another task's waker: what it waits for has to know.
        let mut cx = Context::from_waker(&second_task);
        assert!(aside.poll(&mut cx).is_pending() && aside.poll(&mut cx).is_pending());
        assert_eq!(n_asked(&aside), 3);
        aside.waited.wakers[2].wake_by_ref();
        assert_eq!(second.0.load(Ordering::Relaxed), 1);
        assert!(aside.poll(&mut cx).is_ready());
    }

    #[test]
    fn a_call_during_the_poll_is_heard_at_the_next() {
        let task = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&task));
        let mut n_polls = 0;
        let mut calls_at_once = pin!(poll_fn(|cx| {
            n_polls += 1;
            cx.waker().wake_by_ref();
            if n_polls == 2 { Poll::Ready(()) } else { Poll::Pending }
        }));
        let mut aside = Aside::new(calls_at_once.as_mut());
        let mut cx = Context::from_waker(&waker);
        assert!(aside.poll(&mut cx).is_pending());
        assert_eq!(task.0.load(Ordering::Relaxed), 1);
        assert!(aside.poll(&mut cx).is_ready());
    }
}
