//! A namespace's limits as operators write them: in a file, a flag, the environment or `ctl namespace`.
//!
//! ```toml
//! [[namespace]]
//! number = 3
//! sessions = 1000000
//! bytes = "2GiB"
//! value_bytes = "64KiB"
//! evict = "oldest-idle"
//! ```
//!
//! As a flag: `--namespace 3:sessions=1000000,bytes=2GiB,value-bytes=64KiB,evict=oldest-idle`.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use holdfast_format::Namespace;
use holdfast_wire::{Eviction, NamespaceLimits, NamespacePolicy};
use serde::Deserialize;

use crate::options::ByteSize;

/// The limits of one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceSpec {
    pub number: u8,
    pub sessions: Option<u64>,
    pub bytes: Option<ByteSize>,
    pub value_bytes: Option<ByteSize>,
    pub evict: Option<Evict>,
}

/// Who makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evict {
    /// Nobody: the write is refused.
    Never,
    /// Sessions that were idle for longest.
    OldestIdle,
}

impl From<Evict> for Eviction {
    fn from(evict: Evict) -> Eviction {
        match evict {
            Evict::Never => Eviction::Never,
            Evict::OldestIdle => Eviction::OldestIdle,
        }
    }
}

/// As operators write it.
pub fn evict_name(evict: Eviction) -> &'static str {
    match evict {
        Eviction::Never => "never",
        Eviction::OldestIdle => "oldest-idle",
    }
}

impl NamespaceSpec {
    pub fn policy(&self) -> Result<NamespacePolicy, String> {
        let value_bytes = self.value_bytes.map(|size| u32::try_from(size.0));
        Ok(NamespacePolicy {
            namespace: Namespace(self.number),
            limits: NamespaceLimits {
                sessions: self.sessions,
                bytes: self.bytes.map(|size| size.0),
                value_bytes: value_bytes
                    .transpose()
                    .map_err(|_| format!("namespace {}: no value is so large", self.number))?,
                evict: self.evict.unwrap_or(Evict::Never).into(),
            },
        })
    }
}

impl FromStr for NamespaceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<NamespaceSpec, String> {
        let usage = || {
            format!(
                "`{text}` should look like 3:sessions=1000,bytes=1GiB,value-bytes=64KiB,evict=oldest-idle"
            )
        };
        let (number, limits) = text.split_once(':').ok_or_else(usage)?;
        let mut spec = NamespaceSpec {
            number: number.trim().parse().map_err(|_| usage())?,
            sessions: None,
            bytes: None,
            value_bytes: None,
            evict: None,
        };
        for limit in limits.split(',') {
            let (name, value) = limit.split_once('=').ok_or_else(usage)?;
            match name.trim() {
                "sessions" => spec.sessions = Some(value.trim().parse().map_err(|_| usage())?),
                "bytes" => spec.bytes = Some(value.parse()?),
                "value-bytes" => spec.value_bytes = Some(value.parse()?),
                "evict" => spec.evict = Some(Evict::from_str(value.trim(), false)?),
                _ => return Err(usage()),
            }
        }
        spec.policy()?;
        Ok(spec)
    }
}

impl fmt::Display for NamespaceSpec {
    /// The form of the flag, which `from_str` reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let evict = evict_name(self.evict.unwrap_or(Evict::Never).into());
        write!(f, "{}:evict={evict}", self.number)?;
        if let Some(sessions) = self.sessions {
            write!(f, ",sessions={sessions}")?;
        }
        if let Some(bytes) = self.bytes {
            write!(f, ",bytes={bytes}")?;
        }
        if let Some(value_bytes) = self.value_bytes {
            write!(f, ",value-bytes={value_bytes}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_in_either_form_and_written_as_a_flag() {
        #[derive(Deserialize)]
        struct File {
            namespace: Vec<NamespaceSpec>,
        }
        let file: File = toml::from_str(
            "[[namespace]]\nnumber = 3\nsessions = 1000\nbytes = \"1GiB\"\nevict = \"oldest-idle\"\n",
        )
        .unwrap();
        let flag: NamespaceSpec = "3:sessions=1000,bytes=1GiB,evict=oldest-idle"
            .parse()
            .unwrap();
        assert_eq!(file.namespace, std::slice::from_ref(&flag));
        assert_eq!(flag.to_string().parse(), Ok(flag.clone()));
        let policy = flag.policy().unwrap();
        assert_eq!(policy.limits.bytes, Some(1 << 30));
        assert_eq!(policy.limits.evict, Eviction::OldestIdle);
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in [
            "",
            "3",
            "300:sessions=1",
            "3:sessions",
            "3:size=1",
            "3:sessions=many",
        ] {
            let error = text.parse::<NamespaceSpec>().unwrap_err();
            assert!(error.contains("3:sessions=1000"), "{text}: {error}");
        }
        assert!("3:value-bytes=8GiB".parse::<NamespaceSpec>().is_err());
        assert!("3:evict=sometimes".parse::<NamespaceSpec>().is_err());
    }
}
