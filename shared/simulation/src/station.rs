use std::collections::VecDeque;

/// Slots that work in parallel, and a queue without end before them.
#[derive(Debug)]
pub(crate) struct Station<J> {
    free: usize,
    queue: VecDeque<J>,
}

impl<J> Station<J> {
    pub(crate) fn new(slots: usize) -> Self {
        Self { free: slots, queue: VecDeque::new() }
    }

    /// A job arrives; given back where it begins at once.
    pub(crate) fn arrives(&mut self, job: J) -> Option<J> {
        if self.free == 0 {
            self.queue.push_back(job);
            return None;
        }
        self.free -= 1;
        Some(job)
    }

    /// A job is done; the one that begins in its place.
    pub(crate) fn done(&mut self) -> Option<J> {
        let next = self.queue.pop_front();
        self.free += usize::from(next.is_none());
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_begin_in_order_as_slots_become_free() {
        let mut station = Station::new(2);
        assert_eq!([1, 2, 3, 4].map(|job| station.arrives(job)), [Some(1), Some(2), None, None]);
        assert_eq!([(); 4].map(|()| station.done()), [Some(3), Some(4), None, None]);
        assert_eq!([5, 6, 7].map(|job| station.arrives(job)), [Some(5), Some(6), None]);
    }
}
