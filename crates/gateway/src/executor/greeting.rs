//! Who may ask: HELLO and AUTH.

use bytes::Bytes;
use holdfast_wire::redis::{Hello, RespError};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Executor, own};
use crate::connection::Connection;
use crate::info;

impl Executor {
    pub(super) fn hello(&mut self, connection: &mut Connection, hello: Hello) {
        if let Some((user, password)) = &hello.auth
            && !self.accepts(Some(user), password)
        {
            return self.refuse(connection, &RespError::WrongPassword);
        }
        if hello.auth.is_some() {
            connection.set_authenticated(true);
        }
        if !connection.authenticated {
            return self.refuse(connection, &RespError::HelloAuthRequired);
        }
        if let Some(protocol) = hello.protocol {
            connection.protocol = protocol;
        }
        if let Some(name) = hello.name {
            connection.name = own(&name);
        }
        info::write_hello(connection, self.redis_mode());
    }

    pub(super) fn auth(
        &mut self,
        connection: &mut Connection,
        user: Option<Bytes>,
        password: &[u8],
    ) {
        if self.config.password.is_none() && user.is_none() {
            return self.refuse(connection, &RespError::NoPasswordConfigured);
        }
        if self.accepts(user.as_deref(), password) {
            connection.set_authenticated(true);
            connection.write(|reply| reply.ok());
        } else {
            self.refuse(connection, &RespError::WrongPassword);
        }
    }

    /// True for the default user with the right password; any password is right if none is set.
    /// Digests are compared, and in constant time, so that neither length nor a common beginning
    /// can be timed.
    fn accepts(&self, user: Option<&[u8]>, password: &[u8]) -> bool {
        let known_user = user.is_none_or(|user| user == b"default");
        let right = self.config.password.as_ref().is_none_or(|expected| {
            Sha256::digest(expected.as_bytes())
                .ct_eq(&Sha256::digest(password))
                .into()
        });
        known_user && right
    }
}
