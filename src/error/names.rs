//! Enums whose values have names in records, labels and settings.

/// Declares an enum with a name for each value, which every form of it uses.
///
/// It makes `ALL`, `name`, `Display`, `FromStr`, `Serialize` and `Deserialize`. `Error` must be in
/// scope.
macro_rules! named_enum {
    (
        $(#[$meta:meta])*
        pub enum $type:ident, $what:literal {
            $($(#[$doc:meta])* $variant:ident = $name:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $type {
            $($(#[$doc])* $variant,)+
        }

        impl $type {
            /// Every value.
            pub const ALL: &[$type] = &[$($type::$variant,)+];

            /// The name in records.
            pub fn name(self) -> &'static str {
                match self {
                    $($type::$variant => $name,)+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = Error;

            fn from_str(name: &str) -> Result<$type, Self::Err> {
                let mut all = $type::ALL.iter().copied();
                all.find(|value| value.name() == name)
                    .ok_or_else(|| Error::unknown($what, name, &[$($name),+]))
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let name = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
                name.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use named_enum;
