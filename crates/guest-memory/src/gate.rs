//! Running alone: for locked operations that the host cannot do as one.

use parking_lot::{Condvar, Mutex};

use crate::{Attention, CodeMarks};

#[derive(Debug, Default)]
struct Inside {
    running: usize,
    alone: bool,
}

/// Counts the vCPUs that execute, and lets one of them execute alone.
///
/// A vCPU is between [`Gate::enter`] and [`Gate::leave`] while it executes guest instructions,
/// and calls [`Gate::pass`] when its [`Attention::EXCLUSIVE`] is up. Devices do not take part:
/// what they write is not ordered with such an operation, as little as on a machine whose
/// devices ignore the bus lock.
#[derive(Debug, Default)]
pub struct Gate {
    inside: Mutex<Inside>,
    changed: Condvar,
}

impl Gate {
    /// Begins to execute; waits while another executes alone.
    pub fn enter(&self) {
        let mut inside = self.inside.lock();
        while inside.alone {
            self.changed.wait(&mut inside);
        }
        inside.running += 1;
    }

    /// Ends executing.
    pub fn leave(&self) {
        let mut inside = self.inside.lock();
        inside.running = inside.running.saturating_sub(1);
        drop(inside);
        self.changed.notify_all();
    }

    /// Lets whoever wants to be alone have their turn.
    pub fn pass(&self) {
        self.leave();
        self.enter();
    }

    /// Called by a vCPU that has entered: runs `work` while no other vCPU executes. `marks` is
    /// how the others are asked to stand still.
    pub fn exclusively<T>(&self, marks: &CodeMarks, work: impl FnOnce() -> T) -> T {
        let mut inside = self.inside.lock();
        inside.running = inside.running.saturating_sub(1);
        self.changed.notify_all();
        while inside.alone {
            self.changed.wait(&mut inside);
        }
        inside.alone = true;
        marks.tell(Attention::EXCLUSIVE);
        while inside.running > 0 {
            self.changed.wait(&mut inside);
        }
        drop(inside);
        let done = work();
        let mut inside = self.inside.lock();
        marks.untell(Attention::EXCLUSIVE);
        inside.alone = false;
        inside.running += 1;
        drop(inside);
        self.changed.notify_all();
        done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn one_at_a_time() {
        let gate = Gate::default();
        let marks = CodeMarks::new(4096);
        let inside = AtomicUsize::new(0);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let attention = Arc::new(Attention::default());
                    marks.watch(&attention);
                    gate.enter();
                    for _ in 0..200 {
                        gate.exclusively(&marks, || {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            total.fetch_add(1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                        if attention.pending() & Attention::EXCLUSIVE != 0 {
                            gate.pass();
                        }
                    }
                    gate.leave();
                });
            }
        });
        assert_eq!(total.load(Ordering::SeqCst), 800);
    }
}
