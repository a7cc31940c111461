//! Builds libzmq with CURVE and tells cargo how to link it.
//!
//! `zeromq-src` compiles libzmq without a configure step. It leaves out the platform defines below, and without them
//! TCP keepalive is silently ignored and timers cost a `gettimeofday`; it hands them on if they stand in `CXXFLAGS`.
//!
//! A packager who wants the system's library sets `ADAPTIS_ZMQ_LIB_DIR` to its folder (it must have CURVE).

use std::path::Path;
use std::{env, fs};

const SYSTEM_LIBRARY: &str = "ADAPTIS_ZMQ_LIB_DIR";

/// What a configure run would find on Linux; `-w` because the warnings of vendored code are not ours to mend.
const LINUX_FLAGS: &[&str] = &[
    "-w",
    "-DZMQ_HAVE_EVENTFD=1",
    "-DZMQ_HAVE_EVENTFD_CLOEXEC=1",
    "-DHAVE_CLOCK_GETTIME=1",
    "-DHAVE_FORK=1",
    "-DZMQ_HAVE_SO_KEEPALIVE=1",
    "-DZMQ_HAVE_TCP_KEEPCNT=1",
    "-DZMQ_HAVE_TCP_KEEPIDLE=1",
    "-DZMQ_HAVE_TCP_KEEPINTVL=1",
    "-DHAVE_POSIX_MEMALIGN=1",
    "-DZMQ_CACHELINE_SIZE=64",
];

/// What the hundred files of libzmq spend most of their compilation on; parsed once for all of them.
const STANDARD_HEADERS: &str = "\
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>
";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={SYSTEM_LIBRARY}");
    if let Some(folder) = env::var_os(SYSTEM_LIBRARY) {
        println!("cargo:rustc-link-search=native={}", folder.display());
        println!("cargo:rustc-link-lib=dylib=zmq");
        return;
    }
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        add_cxx_flags(&LINUX_FLAGS.join(" "));
        if let Some(header) = precompile(STANDARD_HEADERS) {
            add_cxx_flags(&format!("-include {header}"));
        }
    }
    let library = sodium_folder("DEP_SODIUM_LIB");
    let headers = sodium_folder("DEP_SODIUM_INCLUDE");
    zeromq_src::Build::new().with_libsodium(Some(zeromq_src::LibLocation::new(library, headers))).build();
}

/// The header to include first in every file, if this compiler can parse it ahead. One that was parsed under other
/// flags than a file is compiled with is passed over by the compiler, and the text read instead.
fn precompile(headers: &str) -> Option<String> {
    let folder = env::var("OUT_DIR").ok().filter(|folder| !folder.contains(char::is_whitespace))?;
    let header = Path::new(&folder).join("standard.hpp");
    let compiler = cc::Build::new().cpp(true).std("c++11").warnings(false).try_get_compiler().ok()?;
    if !compiler.is_like_gnu() {
        return None;
    }
    fs::write(&header, headers).ok()?;
    let made = compiler
        .to_command()
        .args(["-x", "c++-header", "-o"])
        .arg(header.with_extension("hpp.gch"))
        .arg(&header)
        .status();
    made.is_ok_and(|status| status.success()).then(|| header.display().to_string())
}

/// Published by the build script of `libsodium-sys-stable`.
fn sodium_folder(variable: &str) -> String {
    env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is unset: libsodium-sys-stable did not say where libsodium is; unset SODIUM_LIB_DIR, or set {SYSTEM_LIBRARY}")
    })
}

/// The compiler driver reads the most particular variable that is set, so the flags go into each one that is.
fn add_cxx_flags(flags: &str) {
    let target = env::var("TARGET").unwrap_or_default();
    let particular = [
        format!("CXXFLAGS_{target}"),
        format!("CXXFLAGS_{}", target.replace('-', "_")),
        "TARGET_CXXFLAGS".into(),
        "HOST_CXXFLAGS".into(),
    ];
    let names = particular.into_iter().filter(|name| env::var_os(name).is_some()).chain(["CXXFLAGS".to_owned()]);
    for name in names {
        let given = env::var(&name).unwrap_or_default();
        // SAFETY: a build script has one thread, and nothing else reads the environment meanwhile.
        unsafe { env::set_var(name, format!("{given} {flags}")) };
    }
}
