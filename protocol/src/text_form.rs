//! Types whose JSON form is their text: written with `Display`, read with
//! `FromStr`, a string in the API's schema.

/// Implements `Serialize`, `Deserialize` and the schema of such a type.
///
/// `NAME, PATTERN, LONGEST` says in the schema what the text is like, too.
macro_rules! text_form {
    ($name:ident, $pattern:expr, $longest:expr) => {
        crate::text_form::text_form!(@serde $name);

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .pattern(Some($pattern))
                    .max_length(Some($longest))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    };
    ($($name:ident),+ $(,)?) => {$(
        crate::text_form::text_form!(@serde $name);

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                String::schema()
            }
        }

        impl utoipa::ToSchema for $name {}
    )+};
    (@serde $name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use text_form;
