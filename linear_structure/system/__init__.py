"""What knows nothing of the subject: files, downloads, errors, options, the machine."""
