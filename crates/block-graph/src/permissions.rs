//! What a parent may do to a node, and what it lets others do.

use std::fmt;

use bitflags::bitflags;

bitflags! {
    /// One or several of the permissions of a node's users.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Permission: u64 {
        /// Reads give what a reader expects: nobody changes the data behind its back.
        const CONSISTENT_READ = 1;
        /// Change the visible data.
        const WRITE = 1 << 1;
        /// Write what is there already: changes nothing that can be seen.
        const WRITE_UNCHANGED = 1 << 2;
        /// Change the length.
        const RESIZE = 1 << 3;
    }
}

impl Permission {
    /// The permissions one by one with the names that clients read.
    pub const NAMES: [(Self, &'static str); 4] = [
        (Self::CONSISTENT_READ, "consistent read"),
        (Self::WRITE, "write"),
        (Self::WRITE_UNCHANGED, "write unchanged"),
        (Self::RESIZE, "resize"),
    ];
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for (permission, name) in Self::NAMES {
            if self.contains(permission) {
                f.write_str(if first { "" } else { ", " })?;
                f.write_str(name)?;
                first = false;
            }
        }
        if first { f.write_str("none") } else { Ok(()) }
    }
}

/// What one parent needs of a node, and what it lets the node's other parents do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// What the parent needs.
    pub required: Permission,
    /// What it lets others have.
    pub shared: Permission,
}

impl Permissions {
    /// Needs nothing and minds nothing: what a node's parents ask when it has none.
    pub const NONE: Self = Self {
        required: Permission::empty(),
        shared: Permission::all(),
    };

    /// The two together: the union of what is needed, the intersection of what is shared.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            required: self.required | other.required,
            shared: self.shared & other.shared,
        }
    }

    /// What a format driver asks of the node that stores its image.
    ///
    /// A writable format changes metadata at any time, so it needs write and resize whatever its
    /// own parents ask, and nobody else may do either.
    #[must_use]
    pub fn of_image_storage(self, writable: bool) -> Self {
        let mut required = self.required | Permission::CONSISTENT_READ;
        let mut shared = self.shared;
        if writable {
            required |= Permission::WRITE | Permission::RESIZE;
        } else {
            required -= Permission::WRITE | Permission::WRITE_UNCHANGED | Permission::RESIZE;
        }
        shared -= Permission::WRITE | Permission::RESIZE;
        shared |= Permission::WRITE_UNCHANGED;
        Self { required, shared }
    }

    /// What a copy-on-write format asks of its backing node: it only reads it, and others may
    /// write only what does not change it.
    #[must_use]
    pub fn of_backing(self) -> Self {
        let writers = self.shared.contains(Permission::WRITE);
        let mut shared = Permission::CONSISTENT_READ | Permission::WRITE_UNCHANGED;
        if writers {
            shared |= Permission::WRITE | Permission::RESIZE;
        }
        Self {
            required: self.required & Permission::CONSISTENT_READ,
            shared,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_joined_as_clients_read_them() {
        let both = Permission::WRITE | Permission::CONSISTENT_READ;
        assert_eq!(both.to_string(), "consistent read, write");
        assert_eq!(Permission::empty().to_string(), "none");
    }

    #[test]
    fn a_writable_image_lets_nobody_else_write_its_storage() {
        let asked = Permissions::NONE.of_image_storage(true);
        assert!(
            asked
                .required
                .contains(Permission::WRITE | Permission::RESIZE)
        );
        assert!(
            !asked
                .shared
                .intersects(Permission::WRITE | Permission::RESIZE)
        );
        let asked = Permissions::NONE.of_image_storage(false);
        assert_eq!(asked.required, Permission::CONSISTENT_READ);
    }
}
