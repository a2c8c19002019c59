//! The C interface: `include/genesys_attributes.h` says what each function does, and who owns what.
//!
//! JSON goes in and comes out, in the formats that the rest of the library has. The boundary has the
//! strings, the status codes and the panics; the other files have the functions by subject. All of
//! the crate's `unsafe` is here.
//!
//! This module cannot check what the header asks for: that a pointer which is not NULL points to
//! what its type says, for as long as the header says.

#[cfg(panic = "abort")]
compile_error!(
    "the C interface turns panics into status codes, which panic = \"abort\" would not let it do: \
     build with panic = \"unwind\""
);

mod batch;
mod boundary;
mod callbacks;
mod calling;
#[cfg(all(test, feature = "testing"))]
mod function_tests;
mod functions;
#[cfg(all(test, feature = "testing"))]
mod json_tests;
mod logger;
#[cfg(feature = "testing")]
mod sandbox;
