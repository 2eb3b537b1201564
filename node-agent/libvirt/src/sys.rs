//! The calls into libvirt that the `virt` crate does not have: being told, and
//! whether it is at work.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use muster_protocol::vm::VmId;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;

/// Who is told, on the thread of the event loop. It must not panic.
pub(crate) trait Told {
    /// A domain was started, stopped, …
    fn event(uuid: VmId, what: &'static str);
    /// The connection is gone.
    fn closed(why: &'static str);
}

/// Tells `T` what happens to domains, and when the connection is gone, for as
/// long as the process runs. The event loop must have been registered before
/// the connection was opened.
pub(crate) fn follow<T: Told>(connection: &Connect) -> Result<(), Error> {
    // SAFETY: libvirt calls the callback with the arguments of the event that
    // it is registered for, by the id; for LIFECYCLE these are the ones of
    // `lifecycle`. Callbacks of all events are passed as this one type in C,
    // too (VIR_DOMAIN_EVENT_CALLBACK).
    let callback = unsafe { std::mem::transmute::<Lifecycle, Generic>(lifecycle::<T>) };
    // SAFETY: the connection is open, which `Connect` holds; no domain means
    // all of them; the callback is a function that lives for ever, and there
    // is no data behind `opaque` that could end before it.
    let registered = unsafe {
        virt_sys::virConnectDomainEventRegisterAny(
            connection.as_ptr(),
            ptr::null_mut(),
            virt_sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int,
            Some(callback),
            ptr::null_mut(),
            None,
        )
    };
    if registered < 0 {
        return Err(Error::last_error());
    }
    // SAFETY: as above; the callback has the type that the call asks for.
    let registered = unsafe {
        virt_sys::virConnectRegisterCloseCallback(
            connection.as_ptr(),
            Some(closed::<T>),
            ptr::null_mut(),
            None,
        )
    };
    if registered < 0 {
        return Err(Error::last_error());
    }
    Ok(())
}

/// Whether libvirt works on a domain now, or waits for its QEMU.
pub(crate) fn is_busy(domain: &Domain) -> Result<bool, Error> {
    let mut info = virt_sys::virDomainControlInfo {
        state: 0,
        details: 0,
        stateTime: 0,
    };
    // SAFETY: the domain lives as long as `domain`, and `info` is what the
    // call fills, for as long as it takes.
    let got = unsafe { virt_sys::virDomainGetControlInfo(domain.as_ptr(), &mut info, 0) };
    if got < 0 {
        return Err(Error::last_error());
    }
    Ok(matches!(
        info.state,
        virt_sys::VIR_DOMAIN_CONTROL_JOB | virt_sys::VIR_DOMAIN_CONTROL_OCCUPIED
    ))
}

type Generic = unsafe extern "C" fn(virt_sys::virConnectPtr, virt_sys::virDomainPtr, *mut c_void);
type Lifecycle = unsafe extern "C" fn(
    virt_sys::virConnectPtr,
    virt_sys::virDomainPtr,
    c_int,
    c_int,
    *mut c_void,
) -> c_int;

/// libvirt calls it with a domain that lives until it returns.
unsafe extern "C" fn lifecycle<T: Told>(
    _connection: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    _opaque: *mut c_void,
) -> c_int {
    let mut text: [c_char; virt_sys::VIR_UUID_STRING_BUFLEN as usize] =
        [0; virt_sys::VIR_UUID_STRING_BUFLEN as usize];
    // SAFETY: the domain is valid during the callback, and the buffer is as
    // long as the call asks for.
    let got = unsafe { virt_sys::virDomainGetUUIDString(domain, text.as_mut_ptr()) };
    if got < 0 {
        return 0;
    }
    // SAFETY: the call has written a text that ends with 0 within the buffer.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) };
    if let Some(uuid) = text.to_str().ok().and_then(|text| text.parse().ok()) {
        T::event(uuid, name(event, detail));
    }
    0
}

/// libvirt calls it when the connection is gone.
unsafe extern "C" fn closed<T: Told>(
    _connection: virt_sys::virConnectPtr,
    reason: c_int,
    _opaque: *mut c_void,
) {
    T::closed(match u32::try_from(reason) {
        Ok(virt_sys::VIR_CONNECT_CLOSE_REASON_EOF) => "libvirt has closed the connection",
        Ok(virt_sys::VIR_CONNECT_CLOSE_REASON_KEEPALIVE) => "libvirt does not answer any more",
        _ => "the connection to libvirt is broken",
    });
}

fn name(event: c_int, detail: c_int) -> &'static str {
    let detail = u32::try_from(detail).unwrap_or(u32::MAX);
    match u32::try_from(event).unwrap_or(u32::MAX) {
        virt_sys::VIR_DOMAIN_EVENT_DEFINED => "defined",
        virt_sys::VIR_DOMAIN_EVENT_UNDEFINED => "undefined",
        virt_sys::VIR_DOMAIN_EVENT_STARTED => "started",
        virt_sys::VIR_DOMAIN_EVENT_SUSPENDED => "suspended",
        virt_sys::VIR_DOMAIN_EVENT_RESUMED => "resumed",
        virt_sys::VIR_DOMAIN_EVENT_STOPPED
            if detail == virt_sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED
                || detail == virt_sys::VIR_DOMAIN_EVENT_STOPPED_FAILED =>
        {
            "crashed"
        }
        virt_sys::VIR_DOMAIN_EVENT_STOPPED => "stopped",
        virt_sys::VIR_DOMAIN_EVENT_SHUTDOWN => "shutting_down",
        virt_sys::VIR_DOMAIN_EVENT_PMSUSPENDED => "suspended",
        virt_sys::VIR_DOMAIN_EVENT_CRASHED => "crashed",
        _ => "changed",
    }
}
