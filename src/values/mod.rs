//! What may be written, and how versions compare.

pub(crate) mod attributes;
pub(crate) mod json;
pub(crate) mod kind;
pub(crate) mod lenient;
pub(crate) mod schema;
pub(crate) mod version;
