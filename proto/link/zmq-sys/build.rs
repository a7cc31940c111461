//! Builds libzmq with CURVE and tells cargo how to link it.
//!
//! `zeromq-src` compiles libzmq without a configure step. It leaves out the platform defines below, and without them
//! TCP keepalive is silently ignored and timers cost a `gettimeofday`; it hands them on if they stand in `CXXFLAGS`.
//!
//! A packager who wants the system's library sets `ADAPTIS_ZMQ_LIB_DIR` to its folder (it must have CURVE).

use std::env;

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
    }
    let library = sodium_folder("DEP_SODIUM_LIB");
    let headers = sodium_folder("DEP_SODIUM_INCLUDE");
    zeromq_src::Build::new().with_libsodium(Some(zeromq_src::LibLocation::new(library, headers))).build();
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
