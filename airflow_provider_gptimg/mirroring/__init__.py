# SPDX-License-Identifier: Apache-2.0
"""Copy images from their URLs into S3, exactly."""
