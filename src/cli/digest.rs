//! FNV-1a, 64 bits: tells a changed line from an unchanged one, and shares conversations out.

use super::options::Shard;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest(u64);

impl Digest {
    pub(crate) fn new() -> Digest {
        Digest(0xCBF2_9CE4_8422_2325)
    }

    pub(crate) fn of(bytes: &[u8]) -> u64 {
        let mut digest = Digest::new();
        digest.add(bytes);
        digest.value()
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3);
        }
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }
}

impl Shard {
    /// Whether a conversation belongs to this part.
    pub(crate) fn has(self, conversation: &str) -> bool {
        Digest::of(conversation.as_bytes()) % self.count == self.index
    }

    /// The same for a line that names no conversation: exactly one part tells of it.
    pub(crate) fn has_line(self, number: u64) -> bool {
        number % self.count == self.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_the_published_fnv_1a() {
        assert_eq!(Digest::of(b""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(Digest::of(b"a"), 0xAF63_DC4C_8601_EC8C);
        assert_eq!(Digest::of(b"foobar"), 0x8594_4171_F739_67E8);
    }

    #[test]
    fn each_conversation_belongs_to_one_shard() {
        for n in 0..500 {
            let id = format!("c-{n}");
            let parts = (0..7).filter(|index| {
                Shard {
                    index: *index,
                    count: 7,
                }
                .has(&id)
            });
            assert_eq!(parts.count(), 1);
        }
    }
}
