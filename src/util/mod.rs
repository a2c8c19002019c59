//! Time, chance, locks and encodings: nothing of Genesys in it.

pub(crate) mod base64;
pub mod clock;
pub(crate) mod date;
pub(crate) mod histogram;
pub(crate) mod keyed_lock;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod sync;
