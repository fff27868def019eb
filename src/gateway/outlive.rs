//! What is finished even if whoever waits for it goes, and has no task of its own as long as nobody does.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_util::task::TaskTracker;

/// A future that goes on as a task once it is dropped unfinished.
pub struct Outlive<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    /// None once it is finished.
    going: Option<Pin<Box<F>>>,
    tasks: TaskTracker,
}

impl<F> Outlive<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    /// Of a future, which begins when it is waited for.
    pub fn new(tasks: &TaskTracker, future: F) -> Self {
        Self { going: Some(Box::pin(future)), tasks: tasks.clone() }
    }
}

impl<F> Future for Outlive<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Some(going) = &mut self.going else { return Poll::Pending };
        let polled = going.as_mut().poll(cx);
        if polled.is_ready() {
            self.going = None;
        }
        polled
    }
}

impl<F> Drop for Outlive<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn drop(&mut self) {
        if let Some(going) = self.going.take() {
            self.tasks.spawn(async { drop(going.await) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn it_is_finished_with_and_without_somebody_who_waits() {
        let tasks = TaskTracker::new();
        assert_eq!(Outlive::new(&tasks, async { 7 }).await, 7);
        assert!(tasks.is_empty(), "no task for what was waited for");
        let ((go, wait), (told, done)) = (oneshot::channel::<()>(), oneshot::channel());
        let mut left = Outlive::new(&tasks, async move {
            let _ = wait.await;
            told.send(()).expect("somebody listens");
        });
        assert!(tokio::time::timeout(Duration::ZERO, &mut left).await.is_err(), "it waits");
        drop(left);
        assert_eq!(tasks.len(), 1, "the drain waits for it");
        go.send(()).expect("it still waits");
        done.await.expect("finished");
    }
}
