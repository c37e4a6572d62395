//! The QAPI schema language: parse, check, introspect, document.
