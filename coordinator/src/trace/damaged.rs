//! Reads what others may have damaged by a library that panics where it should refuse.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static IS_READING: Cell<bool> = const { Cell::new(false) };
}

/// Does it; what it says where it panics, which nobody else is told then.
pub(super) fn read<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_READING.get() {
                others(panic);
            }
        }));
    });
    IS_READING.set(true);
    // What it was working on is dropped with it.
    let result = catch_unwind(AssertUnwindSafe(read));
    IS_READING.set(false);
    result.map_err(|panic| said(panic.as_ref()))
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "its reader failed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_refusal_with_its_words() {
        assert_eq!(read(|| 3), Ok(3));
        assert_eq!(read(|| -> u8 { panic!("no dictionary") }), Err("no dictionary".to_owned()));
        assert_eq!(read(|| -> u8 { panic!("page {}", 7) }), Err("page 7".to_owned()));
    }
}
