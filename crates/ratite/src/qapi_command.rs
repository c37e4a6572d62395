//! `ratite qapi`: the schema language on the command line.
