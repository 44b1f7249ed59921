//! Which addresses a receiver may be at: public ones, and those that its administrator has named.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::Serialize;

/// Networks that are nobody's public address, as IANA registers them.
const NOT_PUBLIC: [(Ipv4Addr, u8); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];
/// The part of IPv6 that is given to the public: whatever lies outside of it is not.
const GLOBAL: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// What lies in that part and is not public either: protocols (Teredo among them), examples, and 6to4, which hides an
/// IPv4 address.
const NOT_PUBLIC_V6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// A network, such as `10.1.0.0/16`; a single address is a network too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

/// Why a text names no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not an address, or no length of a prefix behind it.
    #[error("{0:?} is no network; write 10.1.0.0/16, fd00:1::/32 or a single address")]
    Form(String),
    /// The address has bits behind the prefix, so one of the two is a mistake.
    #[error("{text} has bits beyond its prefix; write {meant}")]
    Bits {
        /// As it was written.
        text: String,
        /// The network that holds it.
        meant: Cidr,
    },
}

impl Cidr {
    /// Does it hold this address? An IPv4 address that is written as IPv6 is in the network of either form.
    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        let same = match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => in_v4((network, self.prefix), address),
            (IpAddr::V6(network), IpAddr::V6(address)) => in_v6((network, self.prefix), address),
            _ => false,
        };
        let hidden = match address {
            IpAddr::V6(address) => address.to_ipv4_mapped(),
            IpAddr::V4(_) => None,
        };
        same || hidden.is_some_and(|address| self.holds(IpAddr::V4(address)))
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let form = || CidrError::Form(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => digits
                .parse()
                .ok()
                .filter(|prefix| *prefix <= longest)
                .ok_or_else(form)?,
            Some(_) => return Err(form()),
        };
        let network = match address {
            IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask_v4(prefix))),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask_v6(prefix))),
        };
        let meant = Self { network, prefix };
        if network == address {
            Ok(meant)
        } else {
            let text = text.to_owned();
            Err(CidrError::Bits { text, meant })
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// May a connection go to this address?
#[must_use]
pub fn may_connect(address: IpAddr, named: &[Cidr]) -> bool {
    is_public(address) || named.iter().any(|network| network.holds(address))
}

/// Is it an address of the public internet? Whatever hides another address in it is not.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !NOT_PUBLIC.iter().any(|network| in_v4(*network, address)),
        IpAddr::V6(address) => {
            in_v6(GLOBAL, address) && !NOT_PUBLIC_V6.iter().any(|network| in_v6(*network, address))
        }
    }
}

fn in_v4((network, prefix): (Ipv4Addr, u8), address: Ipv4Addr) -> bool {
    address.to_bits() & mask_v4(prefix) == network.to_bits()
}

fn in_v6((network, prefix): (Ipv6Addr, u8), address: Ipv6Addr) -> bool {
    address.to_bits() & mask_v6(prefix) == network.to_bits()
}

fn mask_v4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn mask_v6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn networks(texts: &[&str]) -> Vec<Cidr> {
        texts
            .iter()
            .map(|text| text.parse().expect("a network"))
            .collect()
    }

    #[test]
    fn only_public_addresses_pass_by_themselves() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "2a00::1",
        ] {
            assert!(may_connect(address(text), &[]), "{text}");
        }
        for text in [
            "0.0.0.0",
            "10.255.255.255",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.255.255",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::a00:1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
        ] {
            assert!(!may_connect(address(text), &[]), "{text}");
        }
    }

    #[test]
    fn a_named_network_lets_its_own_addresses_pass_and_no_others() {
        let named = networks(&["10.1.0.0/16", "fd00:1::/32", "192.168.7.9"]);
        for text in [
            "10.1.255.1",
            "::ffff:10.1.0.1",
            "fd00:1::5",
            "192.168.7.9",
            "1.1.1.1",
        ] {
            assert!(may_connect(address(text), &named), "{text}");
        }
        for text in [
            "10.2.0.1",
            "::ffff:10.2.0.1",
            "fd00:2::5",
            "192.168.7.8",
            "127.0.0.1",
        ] {
            assert!(!may_connect(address(text), &named), "{text}");
        }
        assert!(may_connect(address("127.0.0.1"), &networks(&["0.0.0.0/0"])));
        assert!(!may_connect(address("::1"), &networks(&["0.0.0.0/0"])));
        assert!(may_connect(address("::1"), &networks(&["::/0"])));
    }

    #[test]
    fn a_network_is_written_exactly() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("::1", "::1/128"),
            ("fd00::/8", "fd00::/8"),
        ] {
            assert_eq!(text.parse::<Cidr>().expect("a network").to_string(), shown);
        }
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "::/129",
            "ci.example.com",
            "10/8",
        ] {
            assert!(matches!(text.parse::<Cidr>(), Err(CidrError::Form(_))), "{text}");
        }
        let error = "10.1.2.3/8".parse::<Cidr>().expect_err("a mistake");
        assert_eq!(
            error.to_string(),
            "10.1.2.3/8 has bits beyond its prefix; write 10.0.0.0/8"
        );
    }
}
