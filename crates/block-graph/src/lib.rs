//! Block nodes, their edges, permissions, draining and requests.
