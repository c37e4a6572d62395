//! Several operations under way at once.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use block_graph::BlockError;

/// How many operations one request has under way at most.
pub(crate) const MAX_TOGETHER: usize = 16;

/// A future that stays where it was made.
pub(crate) type Operation<'a, T> = Pin<Box<dyn Future<Output = Result<T, BlockError>> + 'a>>;

/// Runs all operations, at most [`MAX_TOGETHER`] at a time, and waits for each to end, also after
/// one has failed. Results stand in the order of the operations.
///
/// # Errors
/// The first in that order.
pub(crate) async fn together<'a, T>(
    operations: impl IntoIterator<Item = Operation<'a, T>>,
) -> Result<Vec<T>, BlockError> {
    let mut waiting = operations.into_iter();
    let mut running: Vec<(usize, Operation<'a, T>)> = Vec::new();
    let mut results: Vec<Option<Result<T, BlockError>>> = Vec::new();
    poll_fn(|cx| {
        loop {
            let mut index = 0;
            while let Some((number, operation)) = running.get_mut(index) {
                match operation.as_mut().poll(cx) {
                    Poll::Pending => index += 1,
                    Poll::Ready(result) => {
                        if let Some(place) = results.get_mut(*number) {
                            *place = Some(result);
                        }
                        drop(running.swap_remove(index));
                    }
                }
            }
            let before = running.len();
            while running.len() < MAX_TOGETHER
                && let Some(operation) = waiting.next()
            {
                running.push((results.len(), operation));
                results.push(None);
            }
            if running.is_empty() {
                return Poll::Ready(());
            }
            // New ones must be polled once before anything can wake this.
            if running.len() == before {
                return Poll::Pending;
            }
        }
    })
    .await;
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::task::{Context, Waker};

    use block_graph::BlockOperation;

    use super::*;

    #[test]
    fn results_keep_their_order_and_all_are_waited_for() {
        let (running, most, ended) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let operation = |number: usize| {
            let (running, most, ended) = (&running, &most, &ended);
            let mut turns = (number * 7) % 5;
            let mut begun = false;
            let future = poll_fn(move |_| {
                if !begun {
                    begun = true;
                    running.set(running.get() + 1);
                    most.set(most.get().max(running.get()));
                }
                if turns > 0 {
                    turns -= 1;
                    return Poll::Pending;
                }
                running.set(running.get() - 1);
                ended.set(ended.get() + 1);
                Poll::Ready(match number {
                    99 => Err(BlockError::read_only(BlockOperation::Write)),
                    _ => Ok(number),
                })
            });
            let boxed: Operation<'_, usize> = Box::pin(future);
            boxed
        };
        let run = |numbers: Vec<usize>| {
            let mut all = Box::pin(together(numbers.into_iter().map(operation)));
            let mut cx = Context::from_waker(Waker::noop());
            for _ in 0..100 {
                if let Poll::Ready(result) = all.as_mut().poll(&mut cx) {
                    return result;
                }
            }
            panic!("never ends");
        };
        assert_eq!(run((0..50).collect()).unwrap(), (0..50).collect::<Vec<_>>());
        // Some end when they are first polled, so that not all sixteen are seen at once.
        assert!((MAX_TOGETHER / 2..=MAX_TOGETHER).contains(&most.get()));
        assert_eq!(run(vec![]).unwrap(), Vec::<usize>::new());
        ended.set(0);
        assert!(run(vec![1, 99, 3]).is_err());
        assert_eq!(ended.get(), 3);
    }
}
