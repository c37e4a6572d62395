//! Names of nodes: how a node could be opened again, in words that images and clients keep.

use serde_json::{Value, json};

use crate::driver::Driver;
use crate::node::Node;

/// What a name begins with that holds options instead of a path.
pub const JSON_PREFIX: &str = "json:";

/// The options by which a node could be opened again, as far as its names tell them.
pub fn description(node: &Node) -> Value {
    describe(node.driver())
}

fn describe(driver: &dyn Driver) -> Value {
    let filename = driver.filename();
    if let Some(options) = filename.strip_prefix(JSON_PREFIX)
        && let Ok(options) = serde_json::from_str(options)
    {
        return options;
    }
    let file = driver.children().into_iter().next();
    match file {
        Some(file) => json!({"driver": driver.name(), "file": description(&file.node())}),
        None if filename.starts_with("null-") => json!({"driver": driver.name()}),
        None => json!({"driver": driver.name(), "filename": filename}),
    }
}

/// The name `stored` of an image, as seen from the folder of the image `of` that stores it.
pub fn beside(stored: &str, of: &str) -> String {
    if stored.starts_with('/') {
        return stored.to_owned();
    }
    match of.rfind('/') {
        Some(at) => format!("{}{stored}", of.get(..=at).unwrap_or_default()),
        None => stored.to_owned(),
    }
}

/// The path that an image's stored name `stored` stands for, as seen from the folder of the image
/// `of`. None for a name that holds options.
pub fn stored_path(stored: &str, of: &str) -> Option<String> {
    if stored.starts_with(JSON_PREFIX) {
        return None;
    }
    Some(beside(stored.strip_prefix("file:").unwrap_or(stored), of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_names_are_seen_from_the_image() {
        assert_eq!(beside("base.qcow2", "/a/b/top.qcow2"), "/a/b/base.qcow2");
        assert_eq!(beside("../x", "/a/b/top"), "/a/b/../x");
        assert_eq!(beside("/x", "/a/b/top"), "/x");
        assert_eq!(beside("x", "top"), "x");
    }

    #[test]
    fn names_that_hold_options_are_no_paths() {
        assert_eq!(stored_path("json:{}", "/a/top"), None);
        assert_eq!(stored_path("file:/b/x", "/a/top").unwrap(), "/b/x");
        assert_eq!(stored_path("x", "/a/top").unwrap(), "/a/x");
    }
}
