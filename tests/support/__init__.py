"""What tests share: image builders, real servers, tree comparison, a client process, guards."""
