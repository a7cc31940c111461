//! Answers like cuBLAS: a matrix product keeps its stream busy for as long as its operations take, and multiplies
//! nothing. The stream is the CUDA stand-in's.

#![allow(non_snake_case, reason = "the names are the library's")]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every pointer is the caller's, under the library's own contract"
)]

use std::ffi::{c_int, c_void};
use std::sync::Mutex;

const SUCCESS: u32 = 0;
const NOT_INITIALISED: u32 = 1;
const INVALID_VALUE: u32 = 7;

/// The stream of the only handle; none while there is no handle.
static STREAM: Mutex<Option<usize>> = Mutex::new(None);

type Product = unsafe extern "C" fn(*mut c_void, f64);

/// The CUDA stand-in of this process, if it is one.
fn product() -> Option<Product> {
    unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        if library.is_null() {
            return None;
        }
        let function = libc::dlsym(library, c"standinProduct".as_ptr());
        (!function.is_null()).then(|| std::mem::transmute::<*mut c_void, Product>(function))
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasCreate_v2(handle: *mut *mut c_void) -> u32 {
    if product().is_none() {
        return NOT_INITIALISED;
    }
    *STREAM.lock().expect("nobody panics with it") = Some(0);
    unsafe { handle.write(0xb1a5 as *mut c_void) };
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cublasDestroy_v2(_handle: *mut c_void) -> u32 {
    match STREAM.lock().expect("nobody panics with it").take() {
        Some(_) => SUCCESS,
        None => NOT_INITIALISED,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetStream_v2(_handle: *mut c_void, stream: *mut c_void) -> u32 {
    *STREAM.lock().expect("nobody panics with it") = Some(stream as usize);
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasGemmEx(
    _handle: *mut c_void,
    _transa: c_int,
    _transb: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const c_void,
    a: *const c_void,
    _a_type: c_int,
    lda: c_int,
    b: *const c_void,
    _b_type: c_int,
    ldb: c_int,
    beta: *const c_void,
    c: *mut c_void,
    _c_type: c_int,
    ldc: c_int,
    _compute: c_int,
    _algorithm: c_int,
) -> u32 {
    let Some(stream) = *STREAM.lock().expect("nobody panics with it") else { return NOT_INITIALISED };
    let is_null = alpha.is_null() || beta.is_null() || a.is_null() || b.is_null() || c.is_null();
    if is_null || m < 1 || n < 1 || k < 1 || lda < m || ldb < k || ldc < m {
        return INVALID_VALUE;
    }
    let Some(product) = product() else { return NOT_INITIALISED };
    unsafe { product(stream as *mut c_void, 2.0 * f64::from(m) * f64::from(n) * f64::from(k)) };
    SUCCESS
}
