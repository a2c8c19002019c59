//! The classic mistakes, planted one at a time by the test that shows that each is found. The code
//! asks for them only where it is compiled for the unit tests.

use std::cell::Cell;

/// A mistake that the update's code makes on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// After a write whose outcome is unknown and a conflict, a value is computed anew and written.
    ComputeAgainInDoubt,
    /// A computed value that is found in place passes for the update's own.
    ComputedValueInPlace,
    /// A lost answer passes for a write that was not done.
    DoubtForgotten,
    /// The event is told before the outcome is known.
    EventBeforeOutcome,
    /// The turn ends before the outcome is recorded and told.
    TurnReleasedEarly,
    /// The version is remembered although the outcome of a write is unknown.
    CacheKeptInDoubt,
    /// The id of an agent is remembered like a customer's.
    AgentRemembered,
    /// A pause that the platform asks for holds only the call that was asked.
    PauseNotShared,
    /// `Retry-After` of a 503 is not read.
    PauseOfUnavailableIgnored,
    /// A slot of the rate limit frees a minute after the request left, not after its answer came.
    SlotFreedEarly,
    /// Each call without a token logs in for itself.
    LoginNotShared,
    /// A login in mid-call takes the time of a whole update.
    LoginBeyondDeadline,
    /// The outcome of an update that failed after its intent is not recorded.
    OutcomeNotRecorded,
    /// Keys that were not named are left out of a map that is replaced as a whole.
    MapNotMerged,
}

impl Mistake {
    pub(super) const ALL: [Mistake; 14] = [
        Mistake::ComputeAgainInDoubt,
        Mistake::ComputedValueInPlace,
        Mistake::DoubtForgotten,
        Mistake::EventBeforeOutcome,
        Mistake::TurnReleasedEarly,
        Mistake::CacheKeptInDoubt,
        Mistake::AgentRemembered,
        Mistake::PauseNotShared,
        Mistake::PauseOfUnavailableIgnored,
        Mistake::SlotFreedEarly,
        Mistake::LoginNotShared,
        Mistake::LoginBeyondDeadline,
        Mistake::OutcomeNotRecorded,
        Mistake::MapNotMerged,
    ];
}

thread_local! {
    static PLANTED: Cell<Option<Mistake>> = const { Cell::new(None) };
}

/// Whether this thread's code is to make this mistake.
pub(crate) fn planted(mistake: Mistake) -> bool {
    PLANTED.get() == Some(mistake)
}

pub(super) fn plant(mistake: Option<Mistake>) {
    PLANTED.set(mistake);
}
