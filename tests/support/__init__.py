"""What the tests share: servers, transports, and files that are no tests themselves."""
