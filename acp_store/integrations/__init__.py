"""What lets other servers keep their state in a repository; each module needs the SDK that it is named after."""
