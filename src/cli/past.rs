//! What earlier runs left in a results file, in memory of a few bits a line and some bytes for a
//! line that failed.

use std::collections::HashMap;

use serde::Deserialize;

use super::digest::Digest;

/// Lines that are kept together, by their numbers.
const BLOCK: u64 = 1_024;

/// The parts of an outcome that a later run needs.
#[derive(Deserialize)]
pub(crate) struct Recorded {
    pub(crate) line: u64,
    pub(crate) status: String,
    digest: String,
    #[serde(rename = "final")]
    pub(crate) is_final: bool,
    pub(crate) shard: Option<String>,
    /// The line was corrected, and is of another shard since: it has no outcome here.
    #[serde(default)]
    pub(crate) moved: bool,
    /// The line was the last one of its input and had no line end: it may be completed since.
    #[serde(default)]
    pub(crate) partial: bool,
    pub(crate) error: Option<RecordedError>,
}

#[derive(Deserialize)]
pub(crate) struct RecordedError {
    pub(crate) kind: String,
}

impl Recorded {
    pub(crate) fn digest(&self) -> Option<u64> {
        u64::from_str_radix(&self.digest, 16).ok()
    }
}

/// A few bits for each line of a block, and the digests of its lines that did not fail, in a sum
/// that does not depend on the order.
#[derive(Default)]
struct Block {
    seen: [u64; BLOCK as usize / 64],
    done: [u64; BLOCK as usize / 64],
    sum: u64,
}

fn bit(bits: &[u64], line: u64) -> bool {
    let at = line % BLOCK;
    bits.get((at / 64) as usize)
        .is_some_and(|word| word >> (at % 64) & 1 == 1)
}

fn set(bits: &mut [u64], line: u64, on: bool) {
    let at = line % BLOCK;
    if let Some(word) = bits.get_mut((at / 64) as usize) {
        match on {
            true => *word |= 1 << (at % 64),
            false => *word &= !(1 << (at % 64)),
        }
    }
}

#[derive(Default)]
pub(crate) struct Past {
    blocks: HashMap<u64, Block>,
    /// The lines that may be corrected: they failed, or were skipped and never applied. With the
    /// digest that they had then.
    failed: HashMap<u64, u64>,
    /// Last lines without a line end, with their digests: such a line may have been completed.
    partial: HashMap<u64, u64>,
    /// The largest number of a line that has an outcome.
    last: u64,
}

/// How an input differs from the one that the outcomes came from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mismatch {
    /// It ends at this line, before the last outcome.
    Short(u64),
    /// This line is another one.
    Line(u64),
    /// One of the lines from this one on is another one, within a block.
    Block(u64),
}

impl Past {
    /// Whether there is nothing to resume from.
    pub(crate) fn is_empty(&self) -> bool {
        self.last == 0
    }

    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    fn is_done(&self, line: u64) -> bool {
        let block = self.blocks.get(&(line / BLOCK));
        block.is_some_and(|block| bit(&block.done, line))
    }

    pub(crate) fn is_failed(&self, line: u64) -> bool {
        self.failed.contains_key(&line)
    }

    /// Whether the line is to be run.
    pub(crate) fn wants(&self, line: u64, retry_failed: bool) -> bool {
        !self.is_done(line) || retry_failed && self.is_failed(line)
    }

    /// How many lines failed for good.
    pub(crate) fn failures(&self) -> u64 {
        let done = self.failed.keys().filter(|line| self.is_done(**line));
        done.count() as u64
    }

    /// How many lines are not to be run.
    pub(crate) fn settled(&self, retry_failed: bool) -> u64 {
        let words = self.blocks.values().flat_map(|block| block.done);
        let done: u64 = words.map(|word| u64::from(word.count_ones())).sum();
        done - if retry_failed { self.failures() } else { 0 }
    }

    /// Takes an outcome in; the last one of a line counts.
    pub(crate) fn read(&mut self, record: &Recorded) -> Result<(), &'static str> {
        let Recorded { line, is_final, .. } = *record;
        if line == 0 {
            return Err("it has no usable line number");
        }
        let digest = record.digest().ok_or("it has no usable digest")?;
        let block = self.blocks.entry(line / BLOCK).or_default();
        // Only the digest of a line that failed may change.
        let kept = self.failed.remove(&line).is_none() & self.partial.remove(&line).is_none();
        let in_sum = kept && bit(&block.seen, line);
        if in_sum {
            block.sum = block.sum.wrapping_sub(mixed(line, digest));
        }
        self.last = self.last.max(line);
        set(&mut block.seen, line, !record.moved);
        set(&mut block.done, line, is_final && !record.moved);
        if record.moved {
            return Ok(());
        }
        if record.partial {
            self.partial.insert(line, digest);
        }
        if record.status == "failed" || record.status == "skipped" && !in_sum {
            self.failed.insert(line, digest);
        } else if !record.partial {
            block.sum = block.sum.wrapping_add(mixed(line, digest));
        }
        Ok(())
    }

    /// The line failed, and is of another shard now.
    pub(crate) fn moved(&mut self, line: u64) {
        self.failed.remove(&line);
        if let Some(block) = self.blocks.get_mut(&(line / BLOCK)) {
            set(&mut block.seen, line, false);
            set(&mut block.done, line, false);
        }
    }

    /// The line is to be run again.
    pub(crate) fn reopen(&mut self, line: u64) {
        if let Some(block) = self.blocks.get_mut(&(line / BLOCK)) {
            set(&mut block.done, line, false);
        }
    }

    /// Holds the numbers and digests of an input against the past. Gives the first line up to the
    /// last outcome that is to be run.
    pub(crate) fn compare(
        &mut self,
        input: impl Iterator<Item = (u64, u64)>,
        retry_failed: bool,
    ) -> Result<Option<u64>, Mismatch> {
        let mut sums: HashMap<u64, u64> = HashMap::new();
        let (mut last, mut open) = (0, None);
        let end = self.last;
        for (line, digest) in input.take_while(|(line, _)| *line <= end) {
            last = line;
            if self.partial.get(&line).is_some_and(|old| *old != digest) {
                self.reopen(line);
            }
            if open.is_none() && self.wants(line, retry_failed) {
                open = Some(line);
            }
            let block = self.blocks.get(&(line / BLOCK));
            match self.failed.get(&line) {
                _ if self.partial.contains_key(&line) => {}
                Some(_) if retry_failed => {}
                Some(old) if *old != digest => return Err(Mismatch::Line(line)),
                Some(_) => {}
                None if block.is_some_and(|block| bit(&block.seen, line)) => {
                    let sum = sums.entry(line / BLOCK).or_default();
                    *sum = sum.wrapping_add(mixed(line, digest));
                }
                None => {}
            }
        }
        // A line that failed may also be taken away, from the end.
        let needed = match retry_failed {
            true => self.last_settled(),
            false => self.last,
        };
        if last < needed {
            return Err(Mismatch::Short(last));
        }
        let changed = self
            .blocks
            .iter()
            .filter(|(number, block)| sums.get(number).copied().unwrap_or(0) != block.sum);
        match changed.map(|(number, _)| number * BLOCK).min() {
            Some(from) => Err(Mismatch::Block(from)),
            None => Ok(open),
        }
    }

    /// The largest number of a line that may not be corrected.
    fn last_settled(&self) -> u64 {
        let settled = self.blocks.iter().filter_map(|(number, block)| {
            let lines = number * BLOCK..(number + 1).saturating_mul(BLOCK);
            lines
                .rev()
                .find(|line| bit(&block.seen, *line) && !self.is_failed(*line))
        });
        settled.max().unwrap_or(0)
    }

    /// Whether the line's digest counts in the sum of the block that begins at `from`.
    pub(crate) fn counts_in(&self, from: u64, line: u64) -> bool {
        let block = self.blocks.get(&(from / BLOCK));
        line / BLOCK == from / BLOCK
            && block.is_some_and(|block| bit(&block.seen, line))
            && !self.is_failed(line)
            && !self.partial.contains_key(&line)
    }
}

fn mixed(line: u64, digest: u64) -> u64 {
    let mut mixed = Digest::new();
    mixed.add(&line.to_le_bytes());
    mixed.add(&digest.to_le_bytes());
    mixed.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(records: &[(u64, &str, u64, bool)]) -> Past {
        let mut past = Past::default();
        for (line, status, digest, is_final) in records {
            let record = Recorded {
                line: *line,
                status: (*status).to_owned(),
                digest: format!("{digest:016x}"),
                is_final: *is_final,
                shard: None,
                moved: false,
                partial: false,
                error: None,
            };
            past.read(&record).unwrap();
        }
        past
    }

    #[test]
    fn last_outcome_of_a_line_counts() {
        let mut past = past(&[
            (1, "applied", 11, true),
            (2, "failed", 12, true),
            (3, "failed", 13, false),
            (4, "failed", 14, true),
            (4, "applied", 15, true),
            (5, "applied", 16, true),
            (5, "skipped", 16, false),
        ]);
        for (line, plain, retried) in [
            (1, false, false),
            (2, false, true),
            (3, true, true),
            (4, false, false),
            (5, true, true),
            (6, true, true),
        ] {
            assert_eq!(past.wants(line, false), plain, "{line}");
            assert_eq!(past.wants(line, true), retried, "{line}");
        }
        assert_eq!(
            (past.failures(), past.settled(false), past.settled(true)),
            (1, 3, 2)
        );
        let input = [(1, 11), (2, 12), (3, 13), (4, 15), (5, 16), (6, 17)];
        assert_eq!(past.compare(input.into_iter(), false), Ok(Some(3)));
        assert_eq!(past.compare(input.into_iter(), true), Ok(Some(2)));
    }

    #[test]
    fn changed_line_is_refused_unless_it_failed_and_is_retried() {
        let mut past = past(&[
            (1, "applied", 11, true),
            (2, "failed", 12, true),
            (2_000, "applied", 13, true),
        ]);
        let mut check = |input: &[(u64, u64)], retry| past.compare(input.iter().copied(), retry);
        assert_eq!(check(&[(1, 11), (2, 12), (2_000, 13)], false), Ok(None));
        assert_eq!(
            check(&[(1, 11), (2, 99), (2_000, 13)], false),
            Err(Mismatch::Line(2))
        );
        assert_eq!(check(&[(1, 11), (2, 99), (2_000, 13)], true), Ok(Some(2)));
        assert_eq!(
            check(&[(1, 99), (2, 12), (2_000, 13)], true),
            Err(Mismatch::Block(0))
        );
        assert_eq!(
            check(&[(1, 11), (2, 12), (2_000, 14)], true),
            Err(Mismatch::Block(1_024))
        );
        assert_eq!(check(&[(1, 11), (2, 12)], true), Err(Mismatch::Short(2)));
    }

    #[test]
    fn skipped_line_may_be_corrected_unless_it_was_applied_before() {
        let mut past = past(&[
            (1, "failed", 11, false),
            (2, "skipped", 12, false),
            (3, "applied", 13, true),
            (3, "skipped", 13, false),
            (4, "failed", 14, true),
        ]);
        let mut check = |input: &[(u64, u64)], retry| past.compare(input.iter().copied(), retry);
        assert_eq!(
            check(&[(1, 11), (2, 99), (3, 13), (4, 14)], true),
            Ok(Some(1))
        );
        assert_eq!(
            check(&[(1, 11), (2, 99), (3, 13), (4, 14)], false),
            Err(Mismatch::Line(2))
        );
        assert_eq!(
            check(&[(1, 11), (2, 12), (3, 99), (4, 14)], true),
            Err(Mismatch::Block(0))
        );
        // The last line, which failed, is gone.
        assert_eq!(check(&[(1, 11), (2, 12), (3, 13)], true), Ok(Some(1)));
        assert_eq!(
            check(&[(1, 11), (2, 12), (3, 13)], false),
            Err(Mismatch::Short(3))
        );
        assert_eq!(check(&[(1, 11), (2, 12)], true), Err(Mismatch::Short(2)));
    }

    #[test]
    fn line_number_out_of_all_proportion_takes_no_memory() {
        let mut past = past(&[
            (60_000_000_000, "applied", 1, true),
            (u64::MAX, "applied", 2, true),
        ]);
        assert_eq!(past.blocks.len(), 2);
        assert_eq!(
            past.compare([(1, 5)].into_iter(), false),
            Err(Mismatch::Short(1))
        );
    }
}
