//! The table on the double itself; and that the table finds what is wrong.

use std::sync::Arc;

use block_graph::{BlockFuture, InFlight, Node, NodeOptions};
use host_io::Engine;

use super::{Abilities, DiskMaker, MadeDisk, check};
use crate::{Faults, Storage};

struct Doubles {
    yielding: Option<u64>,
}

struct Double(Storage);

impl DiskMaker for Doubles {
    fn abilities(&self) -> Abilities {
        Abilities {
            length_unit: 1,
            ..Abilities::default()
        }
    }

    fn make(&self, size: u64) -> BlockFuture<'_, Box<dyn MadeDisk>> {
        let storage = Storage::new(vec![0; size as usize]);
        storage.set_faults(Faults {
            yielding: self.yielding,
            ..Faults::default()
        });
        Box::pin(async { Ok(Box::new(Double(storage)) as Box<dyn MadeDisk>) })
    }
}

impl MadeDisk for Double {
    fn open(&self, read_only: bool) -> BlockFuture<'_, Arc<Node>> {
        let options = NodeOptions {
            discard_unmap: true,
            ..NodeOptions::default()
        };
        let driver = Box::new(self.0.clone());
        let in_flight = Arc::<InFlight>::default();
        let node = Node::new("double".to_owned(), driver, options, read_only, in_flight);
        Box::pin(async { Ok(node) })
    }

    fn verify(&self, content: &[u8]) {
        assert!(self.0.content() == content);
    }
}

#[test]
fn the_double_passes() {
    check("double", Engine::Threads, Doubles { yielding: None });
}

#[test]
fn the_double_that_gives_way_passes() {
    let yielding = Some(5);
    check(
        "double that gives way",
        Engine::Threads,
        Doubles { yielding },
    );
}
