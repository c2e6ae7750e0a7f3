//! Collectives on device memory, through NVIDIA's NCCL.
//!
//! Calls only submit work to a stream; a peer that never comes shows when the stream does not get
//! on. So a rank that waits for its stream looks after NCCL meanwhile (`check`), and has a
//! deadline. After any failure the communicator is aborted, which ends whatever of it runs on the
//! device.

mod library;

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use thiserror::Error;

use crate::error::CollectiveError;
use crate::host::HostCommunicator;
use crate::world::{Rank, World};

use library::{Config, IN_PROGRESS, Library, NAMES, REMOTE_ERROR, SUCCESS};

/// How often NCCL is asked whether it is done with something that it does in the background.
const POLL: Duration = Duration::from_micros(50);

/// How long a rank that hears of a peer's failure leaves the peer to say what it was.
const GRACE: Duration = Duration::from_secs(10);

/// Why NCCL did not do what a rank asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NcclError {
    /// The library is not there, or is none.
    #[error("{} cannot be opened ({why}): install NCCL 2.18 or later, or use one rank", NAMES[0])]
    MissingLibrary {
        /// What the system says.
        why: String,
    },
    /// The library or the device failed.
    #[error("{call}, call {call_idx} of this rank: {text} ({code})")]
    Failed {
        /// The call that failed, or the last one before the failure showed.
        call: &'static str,
        /// Which of this rank's calls, counted from 0.
        call_idx: u64,
        /// The library's code.
        code: i32,
        /// What it says about it.
        text: String,
    },
    /// A peer did not come while NCCL set something up.
    #[error("{call}, call {call_idx} of this rank: not done after {waited:?}; a peer is missing")]
    TimedOut {
        /// The call that is not done.
        call: &'static str,
        /// Which of this rank's calls, counted from 0.
        call_idx: u64,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A peer did not come to something that runs on the devices.
    #[error(
        "the device stands still since {waited:?}, after {call} (call {call_idx} of this rank) was \
         submitted; a peer is missing"
    )]
    Stands {
        /// The last call of NCCL. What the device waits in may be a later kernel.
        call: &'static str,
        /// Which of this rank's calls, counted from 0.
        call_idx: u64,
        /// How long it was waited for.
        waited: Duration,
    },
}

/// A type of elements on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceElement {
    /// Single precision.
    F32,
    /// bfloat16. Sums are rounded to it after every addition.
    Bf16,
    /// Anything, by its bytes: to be gathered, not summed.
    Byte,
}

/// Elements in the memory of the rank's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSlice {
    /// Where it begins.
    pub address: u64,
    /// How many.
    pub n_elements: usize,
    /// Of which type.
    pub element: DeviceElement,
}

/// A stream of the rank's device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceStream(*mut c_void);

/// A rank's line to its peers' devices. Every rank must make the same calls in the same order.
pub struct NcclCommunicator {
    library: &'static Library,
    raw: ncclComm_t,
    host: HostCommunicator,
    deadline: Duration,
    /// The latest call.
    call: &'static str,
    n_calls: u64,
    /// The first error, which stays.
    failure: Option<CollectiveError>,
}

// SAFETY: NCCL ties a communicator to a device, not to a thread, and `&mut self` keeps calls apart.
unsafe impl Send for NcclCommunicator {}

impl DeviceStream {
    /// # Safety
    /// `raw` is a stream of the driver's, on the device that was current when the communicator was
    /// made, and is not destroyed while a collective is submitted to it.
    pub unsafe fn new(raw: *mut c_void) -> DeviceStream {
        DeviceStream(raw)
    }
}

impl NcclCommunicator {
    /// Meets all other ranks. The rank's device is current on this thread. `deadline` is for this
    /// meeting and for whatever NCCL does in the background later.
    ///
    /// # Errors
    /// A missing library, what NCCL says, or a peer that did not come in time.
    pub(crate) fn connect(
        mut host: HostCommunicator,
        deadline: Duration,
    ) -> Result<NcclCommunicator, CollectiveError> {
        let library = Library::open()?;
        let id = exchange_id(library, &mut host)?;
        let (rank, world) = (host.rank(), host.world());
        let mut nccl = NcclCommunicator {
            library,
            raw: ptr::null_mut(),
            host,
            deadline,
            call: "ncclCommInitRankConfig",
            n_calls: 0,
            failure: None,
        };
        let mut config = Config::non_blocking();
        let (n_ranks, rank_idx) = (world.n_ranks() as c_int, rank.idx() as c_int);
        // SAFETY: the signature is NCCL's; `raw` and `config` outlive the call.
        let code = unsafe {
            (library.comm_init_rank_config)(&mut nccl.raw, n_ranks, id, rank_idx, &mut config)
        };
        nccl.finish(code)?;
        Ok(nccl)
    }

    /// This rank.
    pub fn rank(&self) -> Rank {
        self.host.rank()
    }

    /// All ranks.
    pub fn world(&self) -> World {
        self.host.world()
    }

    /// The line that ran before this one, for what is exchanged at boot.
    pub(crate) fn host(&mut self) -> &mut HostCommunicator {
        &mut self.host
    }

    /// Has `slice` replaced by its sum over all ranks when its turn in the stream comes.
    ///
    /// # Errors
    /// What NCCL says, now or about an earlier call.
    pub fn all_reduce_sum(
        &mut self,
        slice: DeviceSlice,
        stream: DeviceStream,
    ) -> Result<(), CollectiveError> {
        self.begin("ncclAllReduce")?;
        let DeviceSlice { address, n_elements, element } = slice;
        let to = address as *mut c_void;
        // SAFETY: the signature is NCCL's; the stream is one of the driver's, as its maker
        // promised. The address is the device's, which reports wrong ones.
        let code = unsafe {
            let (sum, stream) = (ncclRedOp_t::ncclSum as c_uint, stream.0);
            (self.library.all_reduce)(to, to, n_elements, element.code(), sum, self.raw, stream)
        };
        self.finish(code)
    }

    /// Has `to` filled with every rank's `mine`, in rank order, when its turn in the stream comes.
    /// `to` is as long as `mine` for each rank.
    ///
    /// # Errors
    /// What NCCL says, now or about an earlier call.
    pub fn all_gather(
        &mut self,
        mine: DeviceSlice,
        to: u64,
        stream: DeviceStream,
    ) -> Result<(), CollectiveError> {
        self.begin("ncclAllGather")?;
        let DeviceSlice { address, n_elements, element } = mine;
        let (from, to) = (address as *const c_void, to as *mut c_void);
        // SAFETY: as in `all_reduce_sum`.
        let code = unsafe {
            (self.library.all_gather)(from, to, n_elements, element.code(), self.raw, stream.0)
        };
        self.finish(code)
    }

    /// Whether all is well so far: for a rank that waits for its stream.
    ///
    /// # Errors
    /// What NCCL says about what runs; [`CollectiveError::Aborted`] when a peer failed.
    pub fn check(&mut self) -> Result<(), CollectiveError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let checked = match self.async_code() {
            SUCCESS | IN_PROGRESS if self.host.is_aborted() => Err(CollectiveError::Aborted),
            SUCCESS | IN_PROGRESS => Ok(()),
            code => Err(self.failed(code)),
        };
        self.keep(checked)
    }

    /// The stream did not get on for `waited`: the communicator is given up.
    pub fn time_out(&mut self, waited: Duration) -> CollectiveError {
        let (call, call_idx) = (self.call, self.call_idx());
        self.give_up(NcclError::Stands { call, call_idx, waited })
    }

    fn begin(&mut self, call: &'static str) -> Result<(), CollectiveError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        self.call = call;
        self.n_calls += 1;
        Ok(())
    }

    /// Waits until NCCL has submitted what was asked for: the first time it meets its peers.
    fn finish(&mut self, mut code: c_int) -> Result<(), CollectiveError> {
        let begin = Instant::now();
        while code == IN_PROGRESS {
            if self.host.is_aborted() {
                return self.keep(Err(CollectiveError::Aborted));
            }
            let waited = begin.elapsed();
            if waited > self.deadline {
                let (call, call_idx) = (self.call, self.call_idx());
                return Err(self.give_up(NcclError::TimedOut { call, call_idx, waited }));
            }
            thread::sleep(POLL);
            code = self.async_code();
        }
        match code {
            SUCCESS => Ok(()),
            code => self.keep(Err(self.failed(code))),
        }
    }

    fn async_code(&self) -> c_int {
        let mut code = SUCCESS;
        // SAFETY: the communicator is ours and was not aborted; `code` outlives the call.
        match unsafe { (self.library.comm_get_async_error)(self.raw, &mut code) } {
            SUCCESS => code,
            refused => refused,
        }
    }

    /// What became of the latest call. The first failure that a pool hears of is its cause, so a
    /// rank whose peer has failed waits until that has been said.
    fn failed(&self, code: c_int) -> CollectiveError {
        let begin = Instant::now();
        while code == REMOTE_ERROR && begin.elapsed() < GRACE {
            if self.host.is_aborted() {
                return CollectiveError::Aborted;
            }
            thread::sleep(POLL);
        }
        let text = self.library.text_of(code);
        NcclError::Failed { call: self.call, call_idx: self.call_idx(), code, text }.into()
    }

    /// Of the latest call.
    fn call_idx(&self) -> u64 {
        self.n_calls.saturating_sub(1)
    }

    fn give_up(&mut self, error: NcclError) -> CollectiveError {
        let error = CollectiveError::from(error);
        self.failure = Some(error.clone());
        self.abort();
        error
    }

    /// The first error stays, and ends what runs.
    fn keep(&mut self, result: Result<(), CollectiveError>) -> Result<(), CollectiveError> {
        if let Err(error) = &result {
            self.failure = Some(error.clone());
            self.abort();
        }
        result
    }

    fn abort(&mut self) {
        if self.raw.is_null() {
            return;
        }
        // SAFETY: the communicator is ours; it is forgotten here.
        let code = unsafe { (self.library.comm_abort)(self.raw) };
        self.raw = ptr::null_mut();
        if code != SUCCESS && code != IN_PROGRESS {
            tracing::warn!(rank = %self.rank(), code, "ncclCommAbort");
        }
    }
}

impl Drop for NcclCommunicator {
    fn drop(&mut self) {
        // Not `ncclCommDestroy`, which may wait for peers: whoever drops this has waited for its
        // stream, or has failed.
        self.abort();
    }
}

impl DeviceElement {
    fn code(self) -> c_uint {
        let code = match self {
            DeviceElement::F32 => ncclDataType_t::ncclFloat32,
            DeviceElement::Bf16 => ncclDataType_t::ncclBfloat16,
            DeviceElement::Byte => ncclDataType_t::ncclUint8,
        };
        code as c_uint
    }
}

/// Rank 0's identification of the communicator, for all.
fn exchange_id(
    library: &Library,
    host: &mut HostCommunicator,
) -> Result<ncclUniqueId, CollectiveError> {
    let mut id = ncclUniqueId { internal: [0; 128] };
    if host.rank().idx() == 0 {
        let mut fresh = MaybeUninit::uninit();
        // SAFETY: the signature is NCCL's, which fills the whole of it unless it fails.
        let code = unsafe { (library.get_unique_id)(fresh.as_mut_ptr()) };
        if code != SUCCESS {
            let (call, text) = ("ncclGetUniqueId", library.text_of(code));
            return Err(NcclError::Failed { call, call_idx: 0, code, text }.into());
        }
        // SAFETY: it succeeded.
        id = unsafe { fresh.assume_init() };
    }
    for word in id.internal.as_chunks_mut::<8>().0 {
        let mine = u64::from_ne_bytes(word.map(|byte| byte as u8));
        let of_rank_0 = host.all_gather_word(mine)?[0];
        *word = of_rank_0.to_ne_bytes().map(|byte| byte as c_char);
    }
    Ok(id)
}
