//! Tests of the whole language: good schemas of each era, wrong ones, and arbitrary bytes.
mod bad;
mod good;
mod hostile;
