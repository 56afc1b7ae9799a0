//! CLIENT LIST and CLIENT KILL: which connections are meant.

use bytes::Bytes;

use super::parse::{Parsed, Request};
use super::{RespError, RespRequest};

/// Which connections a CLIENT command is about: those for which everything that is given holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFilter {
    /// Any of these; empty: any at all.
    pub ids: Vec<u64>,
    /// As CLIENT LIST tells it.
    pub address: Option<Bytes>,
    /// Connected for at least so long.
    pub age_s: Option<u64>,
    /// True for what no connection here can be: a replica, a subscriber, of another local address.
    pub nobody: bool,
    /// Not the connection that asks.
    pub skip_me: bool,
}

impl ClientFilter {
    pub fn matches(&self, id: u64, address: &str, age_s: u64, is_me: bool) -> bool {
        let excluded = self.nobody || (self.skip_me && is_me);
        !excluded
            && (self.ids.is_empty() || self.ids.contains(&id))
            && (self.address.as_ref()).is_none_or(|wanted| wanted == address.as_bytes())
            && self.age_s.is_none_or(|wanted| age_s >= wanted)
    }
}

/// CLIENT LIST [TYPE type] [ID id …]
pub(super) fn list(r: &Request<'_>) -> Parsed {
    let mut filter = ClientFilter::default();
    let mut at = 2;
    while at < r.args.len() {
        if at + 1 == r.args.len() {
            return Err(RespError::Syntax);
        }
        if r.is(at, "type") {
            filter.nobody |= nobody_is_of_type(r, at + 1)?;
            at += 2;
        } else if r.is(at, "id") {
            for index in at + 1..r.args.len() {
                filter.ids.push(client_id(r, index)?);
            }
            break;
        } else {
            return Err(RespError::Syntax);
        }
    }
    Ok(RespRequest::ClientList { filter })
}

/// CLIENT KILL address, or CLIENT KILL with any of ID, ADDR, LADDR, TYPE, USER, MAXAGE and SKIPME.
pub(super) fn kill(r: &Request<'_>) -> Parsed {
    if r.args.len() == 3 {
        let filter = ClientFilter {
            address: Some(r.args.bytes(2)),
            ..ClientFilter::default()
        };
        return Ok(RespRequest::ClientKill {
            filter,
            counted: false,
        });
    }
    if r.args.len() < 4 || !r.args.len().is_multiple_of(2) {
        return Err(RespError::Syntax);
    }
    let mut filter = ClientFilter {
        skip_me: true,
        ..ClientFilter::default()
    };
    for at in (2..r.args.len()).step_by(2) {
        let value = at + 1;
        if r.is(at, "id") {
            filter.ids.push(client_id(r, value)?);
        } else if r.is(at, "addr") {
            filter.address = Some(r.args.bytes(value));
        } else if r.is(at, "laddr") {
            // Not known of any connection.
            filter.nobody = true;
        } else if r.is(at, "type") {
            filter.nobody |= nobody_is_of_type(r, value)?;
        } else if r.is(at, "user") {
            if !r.is(value, "default") {
                return Err(RespError::NoSuchUser(super::parse::excerpt(
                    r.args.get(value),
                )));
            }
        } else if r.is(at, "maxage") {
            let age = u64::try_from(r.integer(value)?).map_err(|_| RespError::NotAnInteger)?;
            filter.age_s = Some(age);
        } else if r.is(at, "skipme") {
            filter.skip_me = match () {
                () if r.is(value, "yes") => true,
                () if r.is(value, "no") => false,
                () => return Err(RespError::Syntax),
            };
        } else {
            return Err(RespError::Syntax);
        }
    }
    Ok(RespRequest::ClientKill {
        filter,
        counted: true,
    })
}

fn client_id(r: &Request<'_>, index: usize) -> Result<u64, RespError> {
    match u64::try_from(r.integer(index)?) {
        Ok(id @ 1..) => Ok(id),
        _ => Err(RespError::ClientId),
    }
}

/// Every connection here is a normal one.
fn nobody_is_of_type(r: &Request<'_>, index: usize) -> Result<bool, RespError> {
    if r.is(index, "normal") {
        return Ok(false);
    }
    let others = ["master", "primary", "replica", "slave", "pubsub"];
    match others.iter().any(|other| r.is(index, other)) {
        true => Ok(true),
        false => Err(RespError::UnknownClientType(super::parse::excerpt(
            r.args.get(index),
        ))),
    }
}
