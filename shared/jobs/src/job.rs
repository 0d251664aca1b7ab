use std::collections::BTreeMap;

use crate::Plan;

/// Work that one owner does at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// Searches for the queries of a part and stores their results.
    Part(u32),
    /// Puts the results of all parts into one file.
    File,
    /// Deletes everything that the job has stored.
    Removal,
}

/// Proof of a lease. Every one that a store gives out for a job is larger than those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub i64);

/// Queries with a result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Searched for.
    pub succeeded: u64,
    /// Recorded as failed.
    pub failed: u64,
}

/// Where a unit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nobody has it.
    Pending,
    /// Somebody works on it.
    Leased(Token),
    /// It is done; its results are stored.
    Done(Counts),
}

/// What the callers want of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// That it gets done.
    Run,
    /// That it stops.
    Cancel,
    /// That it goes, for good.
    Delete,
}

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Stop.
    Cancel,
    /// Go on, by another deadline where one is given. Milliseconds since 1970-01-01 UTC, both.
    Resume {
        /// Now, to tell a deadline that has passed.
        now: i64,
        /// The new deadline.
        deadline: Option<i64>,
    },
    /// Delete.
    Delete,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing is under way or done.
    Pending,
    /// Something is under way or done.
    Running,
    /// Everything is done.
    Done,
    /// Stopped by a caller.
    Cancelled,
    /// Its deadline passed before it was done.
    Expired,
    /// Being deleted.
    Deleting,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Running, Self::Done, Self::Cancelled, Self::Expired, Self::Deleting];

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Deleting => "deleting",
        }
    }

    /// Whether nothing happens any more unless a caller asks for it.
    pub fn is_at_rest(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Expired)
    }
}

/// How a unit was finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By this.
    Now,
    /// Before: by this owner, whose confirmation was lost, or by another. Nothing has changed.
    Before,
}

/// Why a job does not let something be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Somebody has the unit, or it is done.
    #[error("the work is taken")]
    Taken,
    /// The job does not want the unit done, or not yet.
    #[error("the work is not wanted")]
    NotWanted,
    /// The lease has ended, and somebody else may have another.
    #[error("the lease has ended")]
    LeaseLost,
    /// Everything is done: there is nothing to stop or to resume.
    #[error("the job is done")]
    Finished,
    /// The job is being deleted.
    #[error("the job is being deleted")]
    Deleting,
}

/// Parts by state, and queries of those that are done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Parts nobody has.
    pub pending: u32,
    /// Parts under way.
    pub leased: u32,
    /// Parts done.
    pub done: u32,
    /// Queries of the parts done.
    pub queries: Counts,
}

/// Everything that decides what may happen to a job. Times are milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    plan: Plan,
    wish: Wish,
    deadline: Option<i64>,
    /// Parts that are not pending, until all is done.
    parts: BTreeMap<u32, Place>,
    file: Place,
    removal: Place,
}

impl Job {
    /// A job of which nothing is done.
    pub fn new(plan: Plan, deadline: Option<i64>) -> Self {
        Self {
            plan,
            wish: Wish::Run,
            deadline,
            parts: BTreeMap::new(),
            file: Place::Pending,
            removal: Place::Pending,
        }
    }

    /// A job as a store has it. `finished` are the counts of a job whose file is written; what is said of parts that there
    /// are not is left out.
    pub fn restore(
        plan: Plan,
        deadline: Option<i64>,
        wish: Wish,
        finished: Option<Counts>,
        places: impl IntoIterator<Item = (Unit, Place)>,
    ) -> Self {
        let mut job = Self { wish, deadline, ..Self::new(plan, None) };
        for (unit, place) in places {
            match unit {
                Unit::Part(part) if part >= plan.parts() => {}
                // A part that is done stays done, whoever still holds a lease of it.
                Unit::Part(part) if matches!(job.parts.get(&part), Some(Place::Done(_))) => {}
                Unit::Part(part) => {
                    job.parts.insert(part, place);
                }
                Unit::File => job.file = place,
                Unit::Removal => job.removal = place,
            }
        }
        if let Some(counts) = finished {
            job.file = Place::Done(counts);
            job.parts.clear();
        }
        job.parts.retain(|_, place| *place != Place::Pending);
        job
    }

    /// How it is cut.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// What the callers want.
    pub fn wish(&self) -> Wish {
        self.wish
    }

    /// When it is given up.
    pub fn deadline(&self) -> Option<i64> {
        self.deadline
    }

    /// The counts of a job whose file is written.
    pub fn finished(&self) -> Option<Counts> {
        match self.file {
            Place::Done(counts) => Some(counts),
            _ => None,
        }
    }

    /// Where a unit stands. Parts of a finished job are done, with counts that nobody remembers.
    pub fn place(&self, unit: Unit) -> Place {
        match unit {
            Unit::Part(_) if self.finished().is_some() => Place::Done(Counts::default()),
            Unit::Part(part) => self.parts.get(&part).copied().unwrap_or(Place::Pending),
            Unit::File => self.file,
            Unit::Removal => self.removal,
        }
    }

    /// Where the job stands.
    pub fn state(&self, now: i64) -> State {
        let done = self.finished().is_some();
        let begun = !self.parts.is_empty() || self.file != Place::Pending;
        match self.wish {
            Wish::Delete => State::Deleting,
            _ if done => State::Done,
            Wish::Cancel => State::Cancelled,
            Wish::Run if self.has_expired(now) => State::Expired,
            Wish::Run if begun => State::Running,
            Wish::Run => State::Pending,
        }
    }

    /// Parts by state, and queries of those that are done.
    pub fn progress(&self) -> Progress {
        let parts = self.plan.parts();
        if let Some(queries) = self.finished() {
            return Progress { done: parts, queries, ..Progress::default() };
        }
        let mut progress = Progress { pending: parts, ..Progress::default() };
        for place in self.parts.values() {
            progress.pending -= 1;
            match place {
                Place::Pending => progress.pending += 1,
                Place::Leased(_) => progress.leased += 1,
                Place::Done(counts) => {
                    progress.done += 1;
                    progress.queries.succeeded += counts.succeeded;
                    progress.queries.failed += counts.failed;
                }
            }
        }
        progress
    }

    /// Whether somebody may take a unit.
    ///
    /// # Errors
    /// [`Refusal::Taken`] or [`Refusal::NotWanted`].
    pub fn may_take(&self, unit: Unit) -> Result<(), Refusal> {
        if self.place(unit) != Place::Pending {
            return Err(Refusal::Taken);
        }
        let runs = self.wish == Wish::Run && self.finished().is_none();
        let wanted = match unit {
            Unit::Part(part) => runs && part < self.plan.parts(),
            Unit::File => runs && self.progress().done == self.plan.parts(),
            // Whoever is at work writes; what it writes must not come after the removal.
            Unit::Removal => self.wish == Wish::Delete && !self.is_worked_on(),
        };
        if wanted { Ok(()) } else { Err(Refusal::NotWanted) }
    }

    /// The unit that should be taken next: the removal, else the file, else the first part that nobody has.
    pub fn next(&self, now: i64) -> Option<Unit> {
        self.units(now).next()
    }

    /// Every unit that may be taken, in the order in which they should be.
    pub fn units(&self, now: i64) -> impl Iterator<Item = Unit> {
        let parts = match self.has_expired(now) {
            true => 0,
            false => self.plan.parts(),
        };
        [Unit::Removal, Unit::File]
            .into_iter()
            .chain((0..parts).map(Unit::Part))
            .filter(|unit| self.may_take(*unit).is_ok())
    }

    /// Whether the work under a lease is still wanted.
    pub fn wants(&self, unit: Unit, now: i64) -> bool {
        match unit {
            Unit::Removal => self.wish == Wish::Delete,
            Unit::File => self.wish == Wish::Run,
            Unit::Part(_) => self.wish == Wish::Run && !self.has_expired(now),
        }
    }

    /// Gives a unit to whoever holds the token.
    ///
    /// # Errors
    /// As [`Job::may_take`].
    pub fn take(&mut self, unit: Unit, token: Token) -> Result<(), Refusal> {
        self.may_take(unit)?;
        self.put(unit, Place::Leased(token));
        Ok(())
    }

    /// Whether the holder of the token may say that the unit is done.
    ///
    /// # Errors
    /// [`Refusal::LeaseLost`].
    pub fn may_finish(&self, unit: Unit, token: Token) -> Result<Finish, Refusal> {
        match self.place(unit) {
            Place::Done(_) => Ok(Finish::Before),
            Place::Leased(holder) if holder == token => Ok(Finish::Now),
            Place::Leased(_) | Place::Pending => Err(Refusal::LeaseLost),
        }
    }

    /// Records that a unit is done. What is done is never changed. For the file the counts are those of the parts,
    /// whatever is given.
    ///
    /// # Errors
    /// As [`Job::may_finish`].
    pub fn finish(&mut self, unit: Unit, token: Token, counts: Counts) -> Result<Finish, Refusal> {
        let finish = self.may_finish(unit, token)?;
        if finish == Finish::Now {
            let counts = if unit == Unit::File { self.progress().queries } else { counts };
            self.put(unit, Place::Done(counts));
            if unit == Unit::File {
                self.parts.clear();
            }
        }
        Ok(finish)
    }

    /// Ends a lease before its work is done: given back, or run out.
    ///
    /// # Errors
    /// [`Refusal::LeaseLost`] where the token holds none.
    pub fn release(&mut self, unit: Unit, token: Token) -> Result<(), Refusal> {
        if self.place(unit) != Place::Leased(token) {
            return Err(Refusal::LeaseLost);
        }
        self.put(unit, Place::Pending);
        Ok(())
    }

    /// Does what a caller asks for.
    ///
    /// # Errors
    /// [`Refusal::Finished`], [`Refusal::Deleting`].
    pub fn change(&mut self, change: Change) -> Result<(), Refusal> {
        match (change, self.wish) {
            (Change::Delete, _) => self.wish = Wish::Delete,
            (_, Wish::Delete) => return Err(Refusal::Deleting),
            _ if self.finished().is_some() => return Err(Refusal::Finished),
            (Change::Cancel, _) => self.wish = Wish::Cancel,
            (Change::Resume { now, deadline }, _) => {
                let kept = self.deadline.filter(|old| *old > now);
                self.deadline = deadline.or(kept);
                self.wish = Wish::Run;
            }
        }
        Ok(())
    }

    /// Every unit somebody works on.
    pub fn leases(&self) -> impl Iterator<Item = (Unit, Token)> {
        let parts = self.parts.iter().map(|(part, place)| (Unit::Part(*part), *place));
        parts.chain([(Unit::File, self.file), (Unit::Removal, self.removal)]).filter_map(|(unit, place)| {
            match place {
                Place::Leased(token) => Some((unit, token)),
                _ => None,
            }
        })
    }

    /// Parts somebody works on.
    pub(crate) fn leased(&self) -> usize {
        self.parts.values().filter(|place| matches!(place, Place::Leased(_))).count()
    }

    fn is_worked_on(&self) -> bool {
        self.leased() > 0 || matches!(self.file, Place::Leased(_))
    }

    fn has_expired(&self, now: i64) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    fn put(&mut self, unit: Unit, place: Place) {
        match unit {
            Unit::Part(part) if place == Place::Pending => {
                self.parts.remove(&part);
            }
            Unit::Part(part) => {
                self.parts.insert(part, place);
            }
            Unit::File => self.file = place,
            Unit::Removal => self.removal = place,
        }
    }
}
