//! What only builds with a cargo feature have: read, listed and described with it, and not without.

use serde_json::{Value, json};

use crate::{Interface, ObjectOptions, ObjectType};

const TYPES: [&str; 2] = ["tls-creds-anon", "tls-creds-psk"];
const FEATURE: &str = "tls-anon-psk";

#[test]
fn a_value_is_there_as_the_feature_is() {
    let with = cfg!(feature = "tls-anon-psk");
    for name in TYPES {
        let options = json!({"qom-type": name, "id": "a"});
        let read = crate::from_json::<ObjectOptions>(options.clone());
        match read {
            Ok(read) => {
                assert!(with);
                assert_eq!(crate::ToQapi::to_qapi(&read), options);
            }
            Err(error) => {
                assert!(!with);
                assert_eq!(
                    error.desc,
                    format!(
                        "Parameter 'qom-type' does not accept value '{name}'; this build lacks the \
                         cargo feature '{FEATURE}'"
                    )
                );
            }
        }
        let listed = ObjectType::ALL.iter().any(|kind| kind.as_str() == name);
        assert_eq!(listed, with);
        for interface in [Interface::STORAGE_DAEMON, Interface::MACHINE] {
            assert_eq!(is_described(interface, name), with);
        }
    }
    let other = json!({"qom-type": "no-such-type", "id": "a"});
    let error = crate::from_json::<ObjectOptions>(other).unwrap_err();
    assert_eq!(
        error.desc,
        "Parameter 'qom-type' does not accept value 'no-such-type'"
    );
}

/// Whether an enum of the introspection has the value.
fn is_described(interface: Interface, name: &str) -> bool {
    let introspection: Value = serde_json::from_str(interface.introspection).unwrap();
    let infos = introspection.as_array().unwrap();
    infos.iter().any(|info| {
        let values = info["values"].as_array();
        values.is_some_and(|values| values.iter().any(|value| value == name))
    })
}
