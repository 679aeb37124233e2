//! Who somebody is, by the token that he gives.

use crate::service::config::WebConfig;
use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};
use std::path::Path;

/// The shortest token.
const MIN_TOKEN: usize = 32;
/// The longest token.
pub(super) const MAX_TOKEN: usize = 512;

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// Look.
    Viewer,
    /// Also change.
    Operator,
}

impl Role {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        }
    }
}

/// A token's SHA-256: the time of a comparison then tells nothing about the token.
type Hashed = [u8; 32];

pub(super) fn hashed(text: &str) -> Hashed {
    Sha256::digest(text).into()
}

/// The tokens of a configuration.
pub(super) struct Tokens {
    viewer: Option<Hashed>,
    operator: Option<Hashed>,
}

impl Tokens {
    pub(super) fn read(config: &WebConfig) -> anyhow::Result<Self> {
        let viewer = config.viewer_token_file.as_deref().map(|path| token(path, "web.viewer_token_file")).transpose()?;
        let operator = config.operator_token_file.as_deref().map(|path| token(path, "web.operator_token_file")).transpose()?;
        ensure!(
            viewer.is_none() || viewer != operator,
            "`web.viewer_token_file` and `web.operator_token_file` have the same token, expected different ones"
        );
        Ok(Self { viewer, operator })
    }

    /// Whose token it is.
    pub(super) fn role(&self, given: &str) -> Option<Role> {
        let given = hashed(given);
        // Both are compared, whatever the first says.
        let (operator, viewer) = (self.operator == Some(given), self.viewer == Some(given));
        match (operator, viewer) {
            (true, _) => Some(Role::Operator),
            (false, true) => Some(Role::Viewer),
            (false, false) => None,
        }
    }

    /// Whether looking takes a token even on this machine.
    pub(super) const fn for_viewers(&self) -> bool {
        self.viewer.is_some()
    }

    /// Whether anybody can log in.
    pub(super) const fn any(&self) -> bool {
        self.viewer.is_some() || self.operator.is_some()
    }
}

fn token(path: &Path, key: &str) -> anyhow::Result<Hashed> {
    let place = || format!("`{key}` {}", path.display());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).with_context(place)?.permissions().mode();
        ensure!(mode & 0o077 == 0, "{} has mode {:04o}, expected 0600: others can read it", place(), mode & 0o7777);
    }
    let text = std::fs::read_to_string(path).with_context(place)?;
    let token = text.trim();
    if !(MIN_TOKEN..=MAX_TOKEN).contains(&token.len()) {
        bail!("{}: the token has {} characters, expected {MIN_TOKEN} to {MAX_TOKEN}", place(), token.len());
    }
    ensure!(token.bytes().all(|byte| byte.is_ascii_graphic()), "{}: expected letters, digits and signs of ASCII without spaces", place());
    Ok(hashed(token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    fn write(folder: &Path, name: &str, text: &str, mode: u32) -> Option<PathBuf> {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        Some(path)
    }

    #[test]
    fn tokens_say_who_somebody_is() {
        let folder = tempfile::tempdir().unwrap();
        let viewer_token_file = write(folder.path(), "viewer", "viewer-0123456789-0123456789-012345\n", 0o600);
        let operator_token_file = write(folder.path(), "operator", "operator-0123456789-0123456789-012345\n", 0o600);
        let config = WebConfig { viewer_token_file: viewer_token_file.clone(), operator_token_file, ..WebConfig::default() };
        let tokens = Tokens::read(&config).unwrap();
        let roles =
            ["viewer-0123456789-0123456789-012345", "operator-0123456789-0123456789-012345", "operator-0123456789-0123456789-01234", ""]
                .map(|given| tokens.role(given));
        assert_eq!(roles, [Some(Role::Viewer), Some(Role::Operator), None, None]);
        assert!(Role::Operator > Role::Viewer);
        let twice = WebConfig { viewer_token_file: viewer_token_file.clone(), operator_token_file: viewer_token_file, ..config };
        assert!(Tokens::read(&twice).err().unwrap().to_string().contains("same token"));
        assert!(!Tokens::read(&WebConfig::default()).unwrap().any());
    }

    #[test]
    fn a_token_file_that_is_no_secret_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let long = "x".repeat(MAX_TOKEN + 1);
        for (name, text, mode, expected) in [
            ("open", "0123456789abcdef0123456789abcdef", 0o640, "0600"),
            ("short", "0123456789abcdef0123456789abcde", 0o600, "31 characters"),
            ("long", long.as_str(), 0o600, "513 characters"),
            ("spaced", "0123456789abcdef 0123456789abcdef", 0o600, "without spaces"),
        ] {
            let config = WebConfig { operator_token_file: write(folder.path(), name, text, mode), ..WebConfig::default() };
            let told = Tokens::read(&config).err().unwrap().to_string();
            assert!(told.contains(expected) && told.contains("web.operator_token_file"), "{told}");
            assert!(!told.contains(text), "the token is not told: {told}");
        }
        let gone = WebConfig { viewer_token_file: Some(folder.path().join("nowhere")), ..WebConfig::default() };
        assert!(Tokens::read(&gone).err().unwrap().to_string().contains("web.viewer_token_file"));
    }
}
