//! The program: parse the command line, call one verb.

fn main() {}
