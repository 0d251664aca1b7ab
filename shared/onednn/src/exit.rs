//! The end of the process, which takes the library's global objects with it while other threads may still be at work.
//!
//! A program that is told to stop ends while a model is being loaded, say. The library's destructors run then, and a call that
//! is under way on another thread would crash. So calls are counted, the end waits for those under way, and whoever calls later
//! waits for the end.

use std::{ffi::c_int, sync::Once, time::Duration};

use parking_lot::{RwLock, RwLockReadGuard};

/// Longer than any call takes; a call that hangs does not hold the process back.
const LONGEST_CALL: Duration = Duration::from_secs(5);

static CALLS: RwLock<()> = RwLock::new(());

unsafe extern "C" {
    fn atexit(function: extern "C" fn()) -> c_int;
}

/// A call to the library that is under way.
pub(crate) struct Call(#[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>);

/// Announces a call. Calls may be made within calls.
pub(crate) fn call() -> Call {
    Call(CALLS.read_recursive())
}

impl Call {
    /// To be said when a primitive has run: what is registered here happens before the destructors of the library's objects
    /// that exist by then.
    pub(crate) fn was_made(self) {
        static REGISTERED: Once = Once::new();
        // SAFETY: the function does not unwind. Where it cannot be registered, the end is as it was.
        REGISTERED.call_once(|| unsafe {
            atexit(close);
        });
    }
}

extern "C" fn close() {
    if let Some(calls) = CALLS.try_write_for(LONGEST_CALL) {
        // Never to be opened again.
        std::mem::forget(calls);
    }
}
