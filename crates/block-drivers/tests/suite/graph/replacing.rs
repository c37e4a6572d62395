//! Nodes in the places of others: all of them, or none and no trace.

use block_graph::Replacement;

use super::*;

fn in_place_of(old: &Arc<Node>, new: &Arc<Node>) -> Replacement {
    Replacement {
        old: Arc::clone(old),
        new: Arc::clone(new),
    }
}

fn leads_to(edge: &Edge, node: &Arc<Node>) -> bool {
    Arc::ptr_eq(&edge.node_arc(), node)
}

fn is_parent(node: &Node, edge: &Arc<Edge>) -> bool {
    node.parents().iter().any(|one| Arc::ptr_eq(one, edge))
}

#[test]
fn a_new_node_has_all_that_the_old_one_had() {
    let graph = Graph::default();
    let bottom = null("bottom", false);
    insert(&graph, &bottom);
    let old = raw(&graph, "r", &bottom, false);
    insert(&graph, &null("newer", false));
    let writer = user(&graph, "a writer", &old, easy_writer()).unwrap();
    let edge = old.driver().children().remove(0);
    let asked = edge.permissions();
    let new = raw_over("r", Arc::clone(&edge), false, false);
    graph.replace_nodes(&[in_place_of(&old, &new)]).unwrap();
    assert!(Arc::ptr_eq(&graph.node("r").unwrap(), &new));
    assert!(leads_to(writer.edge(), &new));
    assert!(old.parents().is_empty());
    assert_eq!(edge.permissions(), asked);
    assert_eq!(bottom.parents().len(), 1);
    let names: Vec<_> = graph.nodes().iter().map(|n| n.name().to_owned()).collect();
    assert_eq!(names, ["newer", "r", "bottom"], "the place in queries");
}

#[test]
fn a_writer_keeps_its_node_from_becoming_read_only() {
    let graph = Graph::default();
    let bottom = null("bottom", false);
    insert(&graph, &bottom);
    let old = raw(&graph, "r", &bottom, false);
    let writer = user(&graph, "a writer", &old, easy_writer()).unwrap();
    let edge = old.driver().children().remove(0);
    let new = raw_over("r", edge, false, true);
    let before = picture(&graph, &[&new]);
    let refused = graph.replace_nodes(&[in_place_of(&old, &new)]);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "Read-only block node 'r' cannot support read-write users"
    );
    assert_eq!(picture(&graph, &[&new]), before);
    graph.detach_backend(&writer);
    graph.replace_nodes(&[in_place_of(&old, &new)]).unwrap();
    let refused = user(&graph, "a writer", &new, easy_writer()).err().unwrap();
    assert_eq!(refused, GraphError::ReadOnly);
}

#[test]
fn one_that_fails_takes_all_others_back() {
    let graph = Graph::default();
    let nodes: Vec<_> = ["a", "b", "c"].map(|name| null(name, false)).into();
    let mut users = Vec::new();
    for node in &nodes {
        insert(&graph, node);
        users.push(user(&graph, "a reader", node, asks(READ, Permission::all())).unwrap());
        users.push(user(&graph, "a writer", node, easy_writer()).unwrap());
    }
    for failing in 0..nodes.len() {
        let news: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(number, node)| null(node.name(), number == failing))
            .collect();
        let all: Vec<_> = nodes
            .iter()
            .zip(&news)
            .map(|(o, n)| in_place_of(o, n))
            .collect();
        let also: Vec<_> = news.iter().collect();
        let before = picture(&graph, &also);
        assert!(graph.replace_nodes(&all).is_err());
        assert_eq!(picture(&graph, &also), before, "{failing}");
    }
}

#[test]
fn both_sides_of_a_diamond_see_the_new_bottom() {
    let graph = Graph::default();
    let bottom = null("bottom", false);
    insert(&graph, &bottom);
    let left = raw(&graph, "left", &bottom, false);
    let right = raw(&graph, "right", &bottom, false);
    let _l = user(&graph, "the left", &left, easy_writer()).unwrap();
    let _r = user(&graph, "the right", &right, easy_writer()).unwrap();
    let new = null("bottom", false);
    graph.replace_nodes(&[in_place_of(&bottom, &new)]).unwrap();
    for side in [&left, &right] {
        let edge = side.driver().children().remove(0);
        assert!(leads_to(&edge, &new) && is_parent(&new, &edge));
        assert!(side.reaches(&new) && !side.reaches(&bottom));
    }
    assert_eq!(new.parents().len(), 2);
    assert!(bottom.parents().is_empty());
    // One side would let nobody resize, the other one does: nothing changes.
    let _resizer = user(&graph, "a resizer", &left, asks(RESIZE, Permission::all())).unwrap();
    let edge = right.driver().children().remove(0);
    let window = raw_over("right", edge, true, false);
    let newest = null("bottom", false);
    for order in [[0, 1], [1, 0]] {
        let both = [(&right, &window), (&new, &newest)];
        let both = order.map(|index| in_place_of(both[index].0, both[index].1));
        let before = picture(&graph, &[&window, &newest]);
        let refused = graph.replace_nodes(&both).unwrap_err();
        assert!(matches!(refused, GraphError::Conflict { .. }), "{refused}");
        assert_eq!(picture(&graph, &[&window, &newest]), before);
    }
}

/// A child and its parent at once, the parent by a new edge or by the old one.
#[test]
fn a_child_and_its_parent_change_in_either_order() {
    for (order, kept_edge) in [
        ([0, 1], false),
        ([1, 0], false),
        ([0, 1], true),
        ([1, 0], true),
    ] {
        let graph = Graph::default();
        let child = null("child", false);
        insert(&graph, &child);
        let _before = user(&graph, "a reader", &child, asks(READ, Permission::all())).unwrap();
        let parent = raw(&graph, "parent", &child, false);
        let writer = user(&graph, "a writer", &parent, easy_writer()).unwrap();
        let _after = user(&graph, "a reader", &child, asks(READ, Permission::all())).unwrap();
        let old_edge = parent.driver().children().remove(0);
        let edge = || {
            if kept_edge {
                return Arc::clone(&old_edge);
            }
            let name = ParentName::Node("parent".to_owned());
            graph.loose_edge(name, "file", ChildRole::Image, &child)
        };
        // First one that fails: the child would be read-only.
        let bad_child = null("child", true);
        let bad_parent = raw_over("parent", edge(), false, false);
        let both = [(&child, &bad_child), (&parent, &bad_parent)];
        let both = order.map(|index| in_place_of(both[index].0, both[index].1));
        let before = picture(&graph, &[]);
        let refused = graph.replace_nodes(&both).unwrap_err().to_string();
        assert_eq!(
            refused,
            "Read-only block node 'child' cannot support read-write users"
        );
        assert_eq!(picture(&graph, &[]), before, "{order:?} {kept_edge}");

        let new_child = null("child", false);
        let new_parent = raw_over("parent", edge(), false, false);
        let both = [(&child, &new_child), (&parent, &new_parent)];
        let both = order.map(|index| in_place_of(both[index].0, both[index].1));
        graph.replace_nodes(&both).unwrap();
        let edge = new_parent.driver().children().remove(0);
        assert!(leads_to(&edge, &new_child), "{order:?} {kept_edge}");
        assert!(is_parent(&new_child, &edge));
        assert_eq!(edge.permissions().required, READ | WRITE);
        assert!(leads_to(writer.edge(), &new_parent));
        assert_eq!(new_child.parents().len(), 3);
        assert!(child.parents().is_empty() && parent.parents().is_empty());
    }
}

/// A file that is opened anew shares its locks with the one before: they stay while anybody
/// needs them, whichever edges come and go.
#[test]
fn locks_stay_with_those_who_use_the_file() {
    for (order, fails) in [
        ([0, 1], false),
        ([1, 0], false),
        ([0, 1], true),
        ([1, 0], true),
    ] {
        let (_folder, path) = temporary();
        let graph = Graph::default();
        let old_file = file("f", &path, false);
        insert(&graph, &old_file);
        let spare = null("spare", fails);
        insert(&graph, &spare);
        let parent = raw(&graph, "parent", &old_file, false);
        let writer = user(&graph, "a writer", &parent, easy_writer()).unwrap();
        let other = user(
            &graph,
            "another",
            &old_file,
            asks(READ | WRITE, READ | WRITE),
        )
        .unwrap();
        let locks = locks_of(&path);
        // The parent goes over to another file, which is read-only where this is to fail.
        let name = ParentName::Node("parent".to_owned());
        let edge = graph.loose_edge(name, "file", ChildRole::Image, &spare);
        let new_parent = raw_over("parent", edge, false, false);
        let new_file = reopened(&old_file, &path, false);
        let both = [(&old_file, &new_file), (&parent, &new_parent)];
        let both = order.map(|index| in_place_of(both[index].0, both[index].1));
        let before = picture(&graph, &[]);
        let replaced = graph.replace_nodes(&both);
        assert_eq!(replaced.is_err(), fails);
        assert_eq!(locks_of(&path), locks, "{order:?} {fails}");
        if fails {
            assert_eq!(picture(&graph, &[]), before);
        }
        graph.detach_backend(&other);
        graph.detach_backend(&writer);
        assert!(locks_of(&path).iter().all(|free| *free));
    }
}

/// As above, where the parent stands on the same file by a new edge.
#[test]
fn locks_stay_with_a_new_edge_to_the_same_file() {
    for (order, fails) in [
        ([0, 1], false),
        ([1, 0], false),
        ([0, 1], true),
        ([1, 0], true),
    ] {
        let (_folder, path) = temporary();
        let graph = Graph::default();
        let old_file = file("f", &path, false);
        insert(&graph, &old_file);
        let parent = raw(&graph, "parent", &old_file, false);
        let writer = user(&graph, "a writer", &parent, easy_writer()).unwrap();
        let locks = locks_of(&path);
        let name = ParentName::Node("parent".to_owned());
        let edge = graph.loose_edge(name, "file", ChildRole::Image, &old_file);
        let new_parent = raw_over("parent", edge, false, fails);
        let new_file = reopened(&old_file, &path, false);
        let both = [(&old_file, &new_file), (&parent, &new_parent)];
        let both = order.map(|index| in_place_of(both[index].0, both[index].1));
        let before = picture(&graph, &[]);
        assert_eq!(graph.replace_nodes(&both).is_err(), fails);
        assert_eq!(locks_of(&path), locks, "{order:?} {fails}");
        if fails {
            assert_eq!(picture(&graph, &[]), before);
        }
        graph.detach_backend(&writer);
        assert!(locks_of(&path).iter().all(|free| *free));
    }
}
