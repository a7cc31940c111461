//! The name under which a loader knows the library once it is loaded. The file's own name is another, so that nobody
//! takes it for a driver by accident.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libnvidia-ml.so.1");
    println!("cargo:rerun-if-changed=build.rs");
}
