//! Who may do what: conflicts in clients' words, and what is left of refused and ended users.

use super::*;

#[test]
fn a_conflict_names_both_sides_and_what_is_at_issue() {
    let graph = Graph::default();
    let node = null("n0", false);
    insert(&graph, &node);
    let _first = user(
        &graph,
        "block export 'e0'",
        &node,
        asks(WRITE | RESIZE, READ),
    )
    .unwrap();
    let before = picture(&graph, &[]);
    let refused = user(
        &graph,
        "block device 'ide0'",
        &node,
        asks(WRITE | RESIZE, WRITE | RESIZE),
    );
    assert_eq!(
        refused.err().unwrap().to_string(),
        "Permission conflict on node 'n0': permissions 'write, resize' are both required by block \
         device 'ide0' (uses node 'n0' as 'root' child) and unshared by block export 'e0' (uses \
         node 'n0' as 'root' child)."
    );
    // Needs nothing that is refused, but refuses what is needed.
    let refused = user(
        &graph,
        "block device 'ide0'",
        &node,
        asks(READ, READ | WRITE),
    );
    assert_eq!(
        refused.err().unwrap().to_string(),
        "Permission conflict on node 'n0': permissions 'resize' are both required by block export \
         'e0' (uses node 'n0' as 'root' child) and unshared by block device 'ide0' (uses node \
         'n0' as 'root' child)."
    );
    assert_eq!(picture(&graph, &[]), before);
    assert_eq!(graph.backends().len(), 1);
}

#[test]
fn a_conflict_far_below_names_the_node_where_it_is() {
    let graph = Graph::default();
    let bottom = null("bottom", false);
    insert(&graph, &bottom);
    let _window = raw(&graph, "window", &bottom, true);
    let plain = raw(&graph, "plain", &bottom, false);
    let top = raw(&graph, "top", &plain, false);
    let before = picture(&graph, &[]);
    let refused = user(&graph, "a resizer", &top, asks(RESIZE, Permission::all()));
    assert_eq!(
        refused.err().unwrap().to_string(),
        "Permission conflict on node 'bottom': permissions 'resize' are both required by node \
         'plain' (uses node 'bottom' as 'file' child) and unshared by node 'window' (uses node \
         'bottom' as 'file' child)."
    );
    assert_eq!(picture(&graph, &[]), before);
    // A writer is no trouble, and what it asks arrives below.
    let writer = user(&graph, "a writer", &top, easy_writer()).unwrap();
    assert!(
        bottom
            .parents()
            .iter()
            .any(|edge| edge.permissions().required == READ | WRITE)
    );
    graph.detach_backend(&writer);
    assert_eq!(picture(&graph, &[]), before);
}

#[test]
fn every_pair_of_users_is_judged_by_both_their_words() {
    let sets: Vec<_> = (0..8)
        .map(|bits| {
            [READ, WRITE, RESIZE]
                .into_iter()
                .enumerate()
                .filter(|(bit, _)| bits >> bit & 1 == 1)
                .fold(Permission::empty(), |sum, (_, permission)| sum | permission)
        })
        .collect();
    for (needs, shares) in sets.iter().flat_map(|a| sets.iter().map(move |b| (*a, *b))) {
        for (others, shared) in sets.iter().flat_map(|a| sets.iter().map(move |b| (*a, *b))) {
            let graph = Graph::default();
            let node = null("n", false);
            let one = user(&graph, "one", &node, asks(needs, shares)).unwrap();
            let two = user(&graph, "two", &node, asks(others, shared));
            let fits = shares.contains(others) && shared.contains(needs);
            assert_eq!(two.is_ok(), fits, "{needs}/{shares} and {others}/{shared}");
            drop(one);
        }
    }
}

#[test]
fn a_changed_wish_is_refused_without_a_trace_or_granted() {
    let graph = Graph::default();
    let bottom = null("bottom", false);
    insert(&graph, &bottom);
    let top = raw(&graph, "top", &bottom, false);
    let reader = user(&graph, "a reader", &top, asks(READ, READ | WRITE)).unwrap();
    let other = user(&graph, "another", &top, asks(READ, Permission::all())).unwrap();
    let before = picture(&graph, &[]);
    let refused = graph.change_permissions(other.edge(), asks(RESIZE, Permission::all()));
    assert!(
        matches!(refused, Err(GraphError::Conflict { .. })),
        "{refused:?}"
    );
    assert_eq!(picture(&graph, &[]), before);
    graph
        .change_permissions(other.edge(), easy_writer())
        .unwrap();
    let edges = bottom.parents();
    assert_eq!(edges[0].permissions(), asks(READ | WRITE, READ | WRITE));
    graph.detach_backend(&reader);
    assert_eq!(edges[0].permissions(), easy_writer());
    graph
        .change_permissions(other.edge(), asks(RESIZE, Permission::all()))
        .unwrap();
}

#[test]
fn a_read_only_node_has_no_writers_at_any_depth() {
    let graph = Graph::default();
    let bottom = null("bottom", true);
    insert(&graph, &bottom);
    let top = raw(&graph, "top", &bottom, false);
    let before = picture(&graph, &[]);
    for required in [WRITE, RESIZE] {
        let refused = user(&graph, "a writer", &top, asks(required, Permission::all()));
        assert_eq!(
            refused.err().unwrap().to_string(),
            "Block node is read-only"
        );
        assert_eq!(picture(&graph, &[]), before);
    }
    user(&graph, "a reader", &top, asks(READ, READ)).unwrap();
}

#[test]
fn names_and_removal_follow_the_rules() {
    let graph = Graph::default();
    let bottom = null("n", false);
    insert(&graph, &bottom);
    let words = |result: Result<(), GraphError>| result.unwrap_err().to_string();
    assert_eq!(
        words(graph.check_new_name("n")),
        "Duplicate nodes with node-name='n'"
    );
    assert_eq!(words(graph.check_new_name("1n")), "Invalid node-name: '1n'");
    assert_eq!(
        words(graph.check_new_name(&"n".repeat(32))),
        "Node name too long"
    );
    graph.check_new_name(&"n".repeat(31)).unwrap();
    assert!(graph.insert(0, null("n", false)).is_err());
    let top = raw(&graph, "top", &bottom, false);
    assert_eq!(
        graph.remove("n").unwrap_err().to_string(),
        "Node n is in use"
    );
    assert_eq!(
        graph.remove("m").unwrap_err().to_string(),
        "Cannot find device='' nor node-name='m'"
    );
    assert!(Arc::ptr_eq(&graph.remove("top").unwrap(), &top));
    for edge in top.driver().children() {
        graph.detach(&edge);
    }
    graph.remove("n").unwrap();
    assert!(graph.nodes().is_empty());
}

#[test]
fn reaching_goes_down_and_never_up() {
    let graph = Graph::default();
    let (left, right) = (null("left", false), null("right", false));
    let middle = raw(&graph, "middle", &left, false);
    let top = raw(&graph, "top", &middle, false);
    let beside = raw(&graph, "beside", &left, false);
    for (from, to, yes) in [
        (&top, &top, true),
        (&top, &middle, true),
        (&top, &left, true),
        (&beside, &left, true),
        (&left, &top, false),
        (&middle, &top, false),
        (&beside, &middle, false),
        (&top, &right, false),
    ] {
        assert_eq!(from.reaches(to), yes, "{from:?} {to:?}");
    }
}

#[test]
fn locks_of_a_file_follow_its_users() {
    let (_folder, path) = temporary();
    let graph = Graph::default();
    let node = file("f", &path, false);
    insert(&graph, &node);
    let top = raw(&graph, "top", &node, false);
    let free = locks_of(&path);
    assert!(free.iter().all(|free| *free));
    let reader = user(&graph, "a reader", &top, asks(READ, Permission::all())).unwrap();
    let read = locks_of(&path);
    assert_ne!(read, free);
    let writer = user(&graph, "a writer", &top, asks(WRITE, READ | WRITE)).unwrap();
    let written = locks_of(&path);
    assert_ne!(written, read);
    // Refused: the locks are as they were.
    let refused = user(&graph, "a resizer", &top, asks(RESIZE, READ | WRITE));
    assert!(refused.is_err());
    assert_eq!(locks_of(&path), written);
    graph.detach_backend(&writer);
    assert_eq!(locks_of(&path), read);
    graph.detach_backend(&reader);
    assert_eq!(locks_of(&path), free);
}

#[test]
fn what_another_process_holds_is_refused_without_a_trace() {
    let (_folder, path) = temporary();
    let theirs = Graph::default();
    let other = file("theirs", &path, false);
    let writer = user(&theirs, "a writer", &other, asks(WRITE, READ)).unwrap();
    let graph = Graph::default();
    let node = file("f", &path, false);
    insert(&graph, &node);
    let top = raw(&graph, "top", &node, false);
    let reader = user(&graph, "a reader", &top, asks(READ, Permission::all())).unwrap();
    let (before, locks) = (picture(&graph, &[]), locks_of(&path));
    for (asked, words) in [
        (easy_writer(), "Failed to get \"write\" lock"),
        (
            asks(RESIZE, Permission::all()),
            "Failed to get \"resize\" lock",
        ),
        (asks(READ, READ), "Failed to get shared \"write\" lock"),
    ] {
        let refused = user(&graph, "another", &top, asked).err().unwrap();
        assert_eq!(refused.to_string(), words);
        assert_eq!(picture(&graph, &[]), before);
        assert_eq!(locks_of(&path), locks);
    }
    graph.detach_backend(&reader);
    theirs.detach_backend(&writer);
    user(&graph, "another", &top, easy_writer()).unwrap();
}
