use std::{cell::Cell, ffi::c_int, fmt, path::Path, ptr, sync::OnceLock};

use crate::{
    Error, Missing,
    api::{
        Api, CPU, Dialect, Handle, ISA_AVX512, RUNTIME_OPENMP, RUNTIME_SEQUENTIAL, SUCCESS, Three, Two,
        Version,
    },
    dense, linear,
};

/// Names under which systems install the library, the newest interface first: its products are faster. Debian 13 names its
/// version 3 after a minor version too.
const NAMES: [&str; 4] = ["libdnnl.so.3", "libdnnl.so.3.6", "libdnnl.so.2", "libdnnl.so"];
/// The first minor version of version 2 that has been tried.
const FIRST_MINOR_OF_2: c_int = 6;

/// An opened oneDNN. It lives as long as the process.
pub struct Library {
    pub(crate) api: Api,
    pub(crate) dialect: Dialect,
    pub(crate) engine: Handle,
    pub(crate) dense: dense::Known,
    version: String,
    /// Sets how many threads the calling thread's parallel regions get; absent where the library has no threads.
    set_threads: Option<unsafe extern "C" fn(c_int)>,
}

// SAFETY: the functions are plain code, and an engine may be used from any thread, says the library's manual.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library").field("version", &self.version).finish_non_exhaustive()
    }
}

impl Library {
    /// The system's library, opened at the first call.
    ///
    /// # Errors
    /// [`Missing`]; the same at every call.
    pub fn get() -> Result<&'static Self, &'static Missing> {
        static LIBRARY: OnceLock<Result<Library, Missing>> = OnceLock::new();
        LIBRARY.get_or_init(|| Self::open(&NAMES.map(Path::new))).as_ref()
    }

    /// Opens the first of some files, or names for the system's loader, that is there and can be used.
    ///
    /// # Errors
    /// Where none can be used: [`Missing`] for the first that is there, or for the last that is not.
    pub fn open(candidates: &[&Path]) -> Result<Self, Missing> {
        let mut reason = "no name was given".to_string();
        let mut refused = None;
        for candidate in candidates {
            // SAFETY: a library's initialisers run; the names are those of oneDNN, whose initialisers set up itself.
            match unsafe { libloading::Library::new(*candidate) } {
                Ok(library) => match Self::check(library) {
                    Ok(library) => return Ok(library),
                    Err(missing) => refused = refused.or(Some(missing)),
                },
                Err(cause) => reason = first_line(&told(&cause)),
            }
        }
        Err(refused.unwrap_or(Missing::Library { reason }))
    }

    fn check(library: libloading::Library) -> Result<Self, Missing> {
        let version = version(&library)?;
        let name = format!("{}.{}.{}", version.major, version.minor, version.patch);
        let known = match version.major {
            2 => version.minor >= FIRST_MINOR_OF_2,
            major => major == 3,
        };
        if !known {
            return Err(Missing::Version { found: name });
        }
        let set_threads = match version.cpu_runtime {
            RUNTIME_SEQUENTIAL => None,
            RUNTIME_OPENMP => {
                // SAFETY: the type is that of OpenMP's standard. The library's own copy of the runtime is found, as
                // a look-up goes through what a library depends on.
                let function = unsafe { library.get::<unsafe extern "C" fn(c_int)>(b"omp_set_num_threads") };
                Some(*function.map_err(|_| Missing::Function { name: "omp_set_num_threads" })?)
            }
            runtime => return Err(Missing::Threads { runtime }),
        };
        let api = Api::of(&library)?;
        let dialect = if version.major == 2 {
            Dialect::Two(Two::of(&library)?)
        } else {
            Dialect::Three(Three::of(&library)?)
        };
        let mut engine = ptr::null_mut();
        // SAFETY: the one out-parameter is valid.
        checked("dnnl_engine_create", unsafe { (api.dnnl_engine_create)(&raw mut engine, CPU, 0) })?;
        // What was looked up is used until the process ends.
        std::mem::forget(library);
        Ok(Self { api, dialect, engine, dense: dense::Known::default(), version: name, set_threads })
    }

    /// `major.minor.patch`
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether the library finds AVX-512 here, and may use it.
    #[must_use]
    pub fn has_avx512(&self) -> bool {
        // SAFETY: a function without arguments.
        let isa = unsafe { (self.api.dnnl_get_effective_cpu_isa)() };
        isa & ISA_AVX512 == ISA_AVX512
    }

    /// Checks that products in bf16 run on instructions made for them.
    ///
    /// # Errors
    /// [`Missing::Bf16`] with what the library offers instead.
    pub fn check_bf16(&'static self) -> Result<(), Missing> {
        let reason = match linear::bf16_implementation(self) {
            Ok(name) if name.contains("brg") || name.contains("jit") => return Ok(()),
            Ok(name) => name,
            Err(error) => error.to_string(),
        };
        Err(Missing::Bf16 { reason })
    }

    /// Keeps the library from starting threads in calls from this thread: the caller's own threads share the work.
    pub(crate) fn stay_on_this_thread(&self) {
        thread_local!(static DONE: Cell<bool> = const { Cell::new(false) });
        let Some(set_threads) = self.set_threads else { return };
        if !DONE.replace(true) {
            // SAFETY: sets a variable of the calling thread.
            unsafe { set_threads(1) };
        }
    }
}

/// The version of a library that may not be one of oneDNN.
fn version(library: &libloading::Library) -> Result<&Version, Missing> {
    // SAFETY: the function has had this type in every version.
    let function = unsafe { library.get::<unsafe extern "C" fn() -> *const Version>(b"dnnl_version") };
    let function = function.map_err(|_| Missing::Function { name: "dnnl_version" })?;
    // SAFETY: it takes nothing and returns the address of a constant.
    unsafe { function().as_ref() }.ok_or(Missing::Function { name: "dnnl_version" })
}

pub(crate) fn checked(call: &'static str, status: c_int) -> Result<(), Error> {
    if status == SUCCESS { Ok(()) } else { Err(Error::Call { call, status }) }
}

/// What the system's loader says, which the wrapper keeps as a cause.
fn told(cause: &libloading::Error) -> String {
    std::error::Error::source(cause).map_or_else(|| cause.to_string(), ToString::to_string)
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_string()
}
