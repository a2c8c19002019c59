//! The C interface: `include/genesys_attributes.h` says what each function does, and who owns what.
//!
//! JSON in, JSON out, in the formats that the rest of the library has already, so that there is no
//! struct to keep in step. Three files: the boundary (strings, status codes, panics), the callbacks,
//! and the functions themselves. All of the crate's `unsafe` is here.
//!
//! What cannot be checked here is what the header asks for: that a pointer which is not NULL points
//! to what its type says, for as long as the header says.

#[cfg(panic = "abort")]
compile_error!(
    "the C interface turns panics into status codes, which panic = \"abort\" would not let it do: \
     build with panic = \"unwind\""
);

mod boundary;
mod callbacks;
mod functions;
